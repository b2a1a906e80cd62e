"Real proxies for the tests and for the tutorial on deployment: nginx and Caddy, with the configurations in examples/deploy"
import os
import re
import shutil
import ssl
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx

from cjm_fasthtml_sse.engine.wire import Parser
from tests.contract.servers import NO_TLS, free_port, running
from tests.contract.support import BOUND

DEPLOY = Path(__file__).resolve().parent.parent/'examples/deploy'
FILES = dict(nginx='nginx.conf', caddy='Caddyfile')


def program(name):
    "Where `name` is; the path of an ordinary user often lacks the folder of servers"
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def lacking(*names):
    "Those of `names` that are not installed"
    return [o for o in names if not program(o)]


@contextmanager
def serving(folder, **env):
    "The app of examples/deploy, started with the command of its systemd unit"
    cmd = re.search(r'^ExecStart=\S+ (.+)$', (DEPLOY/'app.service').read_text(), re.M)[1].split()
    cmd[cmd.index('--port')+1] = '{port}'
    port = env.pop('PORT', None)
    with running([sys.executable, '-m', 'uvicorn', *cmd], folder/'app.log', port=port, cwd=DEPLOY, env=dict(SECRET_KEY='only here', **env)) as server: yield server


def certificate(folder):
    "A certificate for localhost that we sign ourselves, and its key"
    cert,key = folder/'cert.pem',folder/'key.pem'
    subprocess.run([program('openssl'), 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=localhost',
        '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', cert], check=True, capture_output=True, timeout=30)
    return cert,key


def replaced(text, changes):
    "`text` with each key of `changes` replaced; one that is not there is an error"
    for old,new in changes.items():
        assert old in text, f'not in the configuration: {old!r}'
        text = text.replace(old, str(new))
    return text


def placed(name, folder, app, port, cert, key):
    "What differs here from the machine that the configuration is for: folders, ports, the certificate"
    if name=='nginx':
        temp = ''.join(f'{o}_temp_path {folder}/{o}; ' for o in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
        return {'user www-data;': 'user root; daemon off;' if not os.geteuid() else 'daemon off;', '/run/nginx.pid': folder/'nginx.pid', '/var/log/nginx/error.log': folder/'error.log',
            'http {': f'http {{ {temp}', 'listen 80;': f'listen 127.0.0.1:{free_port()};', 'listen 443 ssl;': f'listen 127.0.0.1:{port} ssl;', 'app.example.com': 'localhost',
            '/etc/ssl/app/fullchain.pem': cert, '/etc/ssl/app/privkey.pem': key, '127.0.0.1:8000': f'127.0.0.1:{app}'}
    return {'{\n\t# A reload': '{\n\tadmin off\n\tauto_https disable_redirects\n\t# A reload',
        'app.example.com {': f'https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}', '127.0.0.1:8000': f'127.0.0.1:{app}'}


@contextmanager
def proxying(name, app, folder, **changes):
    "`name` before the app at port `app`, with its configuration from examples/deploy; `changes` is a dict of further replacements"
    folder,port = Path(folder)/name,free_port()
    folder.mkdir()
    cert,key = certificate(folder)
    text = replaced((DEPLOY/FILES[name]).read_text(), changes.get('changes', {}))
    (folder/FILES[name]).write_text(replaced(text, placed(name, folder, app, port, cert, key)))
    cmd = [program('nginx'), '-p', folder, '-c', folder/'nginx.conf', '-e', folder/'error.log'] if name=='nginx' else \
        [program('caddy'), 'run', '--config', folder/'Caddyfile', '--adapter', 'caddyfile']
    with running(cmd, folder/'log', port=port, cwd=folder, env=dict(HOME=str(folder), XDG_DATA_HOME=str(folder), XDG_CONFIG_HOME=str(folder))) as proxy:
        proxy.url,proxy.cert,proxy.folder,proxy.cmd = f'https://localhost:{port}',cert,folder,cmd
        yield proxy


def trusting(proxy, protocols=()):
    "What a client needs to trust the certificate of `proxy`"
    context = ssl.create_default_context(cafile=proxy.cert)
    if protocols: context.set_alpn_protocols(protocols)
    return context


@asynccontextmanager
async def browsing(server, http2=True, connections=6, patience=BOUND):
    "A client with as many connections as a browser has; a request waits for `patience` seconds for one of them"
    verify = trusting(server) if hasattr(server, 'cert') else NO_TLS
    async with httpx.AsyncClient(base_url=server.url, http1=not http2, http2=http2, verify=verify, timeout=httpx.Timeout(BOUND, pool=patience),
                                 limits=httpx.Limits(max_connections=connections), trust_env=False) as client: yield client


class Listening:
    "A stream that is read: what came, heartbeats too"
    def __init__(self, response): self.response,self.parser,self.bytes,self.seen,self.ended = response,Parser(),response.aiter_bytes(),[],False

    async def next(self):
        "The next event; `None` where the stream has ended, in order or not"
        while not self.seen:
            try: self.seen += self.parser.feed(await anext(self.bytes))
            except (StopAsyncIteration, httpx.TransportError): return None
        return self.seen.pop(0)

    async def until(self, wanted):
        "The next event for which `wanted` holds; an error where the stream ends before"
        while (e := await self.next()) is not None:
            if wanted(e): return e
        raise AssertionError('the stream has ended')


@asynccontextmanager
async def listening(client, path='/events', **headers):
    "A stream that is open"
    async with client.stream('GET', path, headers=headers) as response:
        yield Listening(response)
