"Real servers for the tests: each is a process of its own, on a port that the system gave, ended by its process id"
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

APPS = Path(__file__).parent/'apps'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def accepts(port):
    try: socket.create_connection(('127.0.0.1', port), 1).close()
    except OSError: return False
    return True


class Server:
    "A server process and what it wrote"
    def __init__(self, cmd, port, log, env=None, cwd=APPS):
        self.port,self.url,self.log = port,f'http://127.0.0.1:{port}',Path(log)
        with open(log, 'ab') as f:
            self.process = subprocess.Popen([str(c) for c in cmd], cwd=cwd, stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.STDOUT,
                                            env={**os.environ, 'PYTHONUNBUFFERED': '1', **(env or {})}, start_new_session=True)

    @property
    def output(self): return self.log.read_text(errors='replace')

    def wait_until_up(self, secs=20):
        until = time.monotonic()+secs
        while not accepts(self.port):
            if self.process.poll() is not None: raise RuntimeError(f'The server ended with {self.process.returncode}:\n{self.output}')
            if time.monotonic()>until: raise TimeoutError(f'The server did not answer in {secs} s:\n{self.output}')
            time.sleep(.02)
        return self

    def signal(self, sig=signal.SIGTERM): self.process.send_signal(sig)

    def ends(self, secs=10):
        "The exit code and the seconds it took to end"
        start = time.monotonic()
        return self.process.wait(secs),time.monotonic()-start

    def stop(self):
        if self.process.poll() is None: self.process.kill()
        self.process.wait(10)


@contextmanager
def running(cmd, log, port=None, **kw):
    "A server that runs inside the `with` block; `{port}` in the command stands for its port"
    port = port or free_port()
    server = Server([str(c).replace('{port}', str(port)) for c in cmd], port, log, **kw)
    try: yield server.wait_until_up()
    finally: server.stop()


def uvicorn(app, *args):
    "The command that serves `app`, such as `board:app` out of tests/apps"
    return [sys.executable, '-m', 'uvicorn', app, '--host', '127.0.0.1', '--port', '{port}', *args]
