"""Servers, clients and rounds: how everything in this folder measures

Servers take turns within each round, and each round begins with another one, so that whatever else the machine does hits all alike. What is kept is what each
round found; what is told is the median, with the least and the most. A round that failed is kept as `None`, never left out in silence.
"""
import json
import os
import platform
import re
import resource
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import environment

HERE = Path(__file__).resolve().parent
PEERS = HERE/'peers'
ROOT = HERE.parent
RESULTS = HERE/'results'


@dataclass
class Server:
    "One that is measured"
    name: str
    command: list                               # Words; `{port}`, `{folder}` and `{conf}` are filled in
    env: dict = field(default_factory=dict)
    client: dict = field(default_factory=dict)  # How its clients speak to it
    conf: str = ''                              # Text of its configuration, with PORT and FOLDER in it


class Servers:
    "What can be measured with this interpreter"
    def __init__(self, python=None):
        self.python = python or environment.python()
        self.lacking = []  # What could not be measured here, and why

    def asgi(self, name, app, under='uvicorn', client=None, **env):
        py,listen = str(self.python),'127.0.0.1:{port}'
        command = dict(
            uvicorn=[py, '-m', 'uvicorn', app, '--port', '{port}', '--loop', 'uvloop', '--http', 'httptools', '--backlog', '4096', '--log-level', 'warning'],
            hypercorn=[py, '-m', 'hypercorn', app, '--bind', listen, '--worker-class', 'uvloop', '--backlog', '4096', '--log-level', 'warning'],
            granian=[py, '-m', 'granian', '--interface', 'asgi', '--port', '{port}', '--loop', 'uvloop', '--backlog', '4096', '--backpressure', '20000', '--log-level', 'warning', app])[under]
        return Server(name, command, env, client or {})

    def ours(self, name='ours', **kw): return self.asgi(name, 'ours:app', **kw)
    def by_hand(self, name='ours, by hand', **kw): return self.asgi(name, 'ours_by_hand:app', **kw)
    def starlette(self, name='Starlette', **kw): return self.asgi(name, 'starlette_alone:app', **kw)
    def sse_starlette(self, name='sse-starlette', **kw): return self.asgi(name, 'sse_starlette_app:app', **kw)
    def datastar(self, name='Datastar', **kw): return self.asgi(name, 'datastar_app:app', **kw)
    def polling(self): return self.asgi('polling', 'polling_app:app', client=dict(poll=True, headers='HX-Request: true\r\n'))  # As htmx asks, so it gets an element and not a page

    def websocket(self, name='WebSocket', compress=False):
        "With compression as a browser asks for it, or without"
        headers = 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n'
        if compress: headers += 'Sec-WebSocket-Extensions: permessage-deflate\r\n'
        return self.asgi(name, 'websocket_app:app', client=dict(headers=headers, whole=compress))

    def floor(self): return Server('uvloop floor', [str(self.python), 'uvloop_floor.py', '{port}'])

    def c_floor(self): return Server('C floor', [str(environment.floor()), '{port}'])

    def better_sse(self): return Server('better-sse', ['node', 'better_sse.mjs', '{port}', str(environment.better_sse())])

    def nchan(self):
        module = environment.nchan()
        conf = (PEERS/'nchan.conf').read_text().replace('MODULE', str(module)).replace('USER', '' if os.geteuid() else 'user root;')
        return Server('nchan', [environment.NGINX, '-e', '{folder}/error.log', '-c', '{conf}'], client=dict(own_times=False), conf=conf)

    def those_here(self, *makers):
        "Servers, without those of which something is missing on this machine"
        for make in makers:
            try: yield make()
            except OSError as e:
                self.lacking.append(f'{make.__name__}: {e}')
                print(f'without {self.lacking[-1]}', flush=True)


def children(pid):
    "A process and all that it started"
    found = [pid]
    with suppress(OSError):
        for task in Path(f'/proc/{pid}/task').iterdir():
            for child in (task/'children').read_text().split(): found += children(int(child))
    return found


@contextmanager
def running(server):
    "Start a server; gives its port and its processes"
    with socket.create_server(('127.0.0.1', 0)) as s: port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile('w+') as log:
        conf = Path(folder)/'conf'
        conf.write_text(server.conf.replace('PORT', str(port)).replace('FOLDER', folder))
        words = [w.replace('{port}', str(port)).replace('{folder}', folder).replace('{conf}', str(conf)) for w in server.command]
        proc = subprocess.Popen(words, cwd=PEERS, env={**os.environ, **server.env, 'PYTHONDONTWRITEBYTECODE': '1'}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            for _ in range(400):
                with suppress(OSError):
                    socket.create_connection(('127.0.0.1', port), 1).close()
                    break
                if proc.poll() is not None: break
                time.sleep(.025)
            if proc.poll() is not None:
                log.seek(0)
                raise OSError(f'{server.name} did not start: {log.read()[-500:]}')
            time.sleep(.2)
            while server.conf and not children(proc.pid)[1:]: time.sleep(.05)  # nginx listens before it has a worker
            yield port,children(proc.pid)
        finally:
            with suppress(ProcessLookupError): os.killpg(proc.pid, signal.SIGKILL)
            proc.wait(10)


def measure(python, server, steps, **client):
    "Run `steps` of client.py against `server`: what all of them found out, in one dict for each"
    with running(server) as (port,pids):
        plan = dict(server=dict(port=port, pids=pids, **server.client, **client), steps=steps)
        done = subprocess.run([str(python), str(HERE/'client.py')], input=json.dumps(plan), capture_output=True, text=True, timeout=240)
    if done.returncode: raise OSError(f'{server.name}: {done.stderr.strip()[-400:]}')
    return json.loads(done.stdout)


def rounds(n, cases):
    """Run each case `n` times, taking turns: name -> figure -> what each round found, in order

    `cases` maps names to functions without arguments, which return a dict of figures: numbers, or a list of them, of which the medians are kept.
    """
    found,names = {name: [] for name in cases},[*cases]
    for i in range(n):
        for name in names[i%len(names):]+names[:i%len(names)]:
            start = time.monotonic()
            try: got = cases[name]()
            except (OSError, TimeoutError, subprocess.TimeoutExpired) as e:
                print(f'  round {i+1}: {name} FAILED: {e}', flush=True)
                got = {}
            found[name].append(got)
            print(f'  round {i+1}: {name:28} ' + '  '.join(f'{k} {v:.4g}' for k,v in got.items() if isinstance(v, float|int)) + f'  ({time.monotonic()-start:.1f} s)', flush=True)
    return {name: by_figure(rows) for name,rows in found.items() if any(rows)}


def by_figure(rows):
    def of(values):
        there = [v for v in values if v is not None]
        if isinstance(there[0], list): return [round(statistics.median(o), 3) for o in zip(*there, strict=True)]
        return [v if v is None else float(f'{v:.4g}') for v in values]
    return {k: of([r.get(k) for r in rows]) for k in dict.fromkeys(k for r in rows for k in r)}


def middle(values):
    "Median, least and most"
    there = [v for v in values if v is not None]
    return statistics.median(there),min(there),max(there)


def raise_limit():
    "As many open files as this user may have; how many?"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def machine():
    with open('/proc/cpuinfo') as f: model = next((l.partition(':')[2].strip() for l in f if l.startswith('model name')), platform.machine())
    with open('/proc/meminfo') as f: gb = round(int(f.readline().split()[1])/1e6)
    return f'{os.cpu_count()} cores, {model}, {gb} GB, Linux {platform.release().split("-")[0]}'


def load():
    "How many processes want to run, as a mean of the last minute: what others do to the machine that is measured"
    return round(os.getloadavg()[0], 1)


def save(section, servers, found, n, load):
    "Put a section into the results of this Python; the others stay as they are"
    path = RESULTS/f'{servers.python.parent.parent.name}.json'
    RESULTS.mkdir(exist_ok=True)
    data = json.loads(path.read_text()) if path.exists() else {}
    data[section] = dict(date=date.today().isoformat(), machine=machine(), versions=environment.versions(servers.python), rounds=n, load=load, lacking=servers.lacking, found=found)
    path.write_text(re.sub(r'\[[^][{}]*\]', lambda m: ' '.join(m[0].split()), json.dumps(data, indent=1))+'\n')
    print(f'-> {path.relative_to(HERE.parent)}, {section}', flush=True)
