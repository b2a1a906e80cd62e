"""What the benchmark needs beside the library, in bench/.env/: a Python with the peers' packages, better-sse from npm, nginx's module nchan, a floor in C

What is missing on this machine (node, nginx, apt, cc) is named, and the benchmark goes on without it.
"""
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENV = HERE/'.env'
BETTER_SSE = '0.16.1'
NGINX = shutil.which('nginx', path='/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin')


def run(*cmd, cwd=ROOT):
    done = subprocess.run([str(c) for c in cmd], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: raise OSError(f"{cmd[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def python():
    "The interpreter that runs servers and clients: this one's version, with the library and the peers; made anew when what it holds changes"
    folder = ENV/f'python{sys.version_info.major}.{sys.version_info.minor}'
    facts = b''.join((ROOT/name).read_bytes() for name in ('bench/requirements.txt', 'settings.ini', 'pyproject.toml'))
    stamp,key = folder/'installed',hashlib.sha256(facts).hexdigest()
    if not stamp.exists() or stamp.read_text()!=key:
        print(f'installing into {folder.relative_to(ROOT)}', flush=True)
        run(sys.executable, '-m', 'venv', '--clear', folder)
        run(folder/'bin'/'python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--editable', '.', '--requirement', 'bench/requirements.txt')
        stamp.write_text(key)
    return folder/'bin'/'python'


def better_sse():
    "The folder with better-sse; `OSError` if it can't be had"
    if not shutil.which('node'): raise OSError('node is not installed')
    folder = ENV/'node'
    found = folder/'node_modules'/'better-sse'/'package.json'
    if not found.exists() or json.loads(found.read_text())['version']!=BETTER_SSE:
        if not shutil.which('npm'): raise OSError('npm is not installed')
        folder.mkdir(parents=True, exist_ok=True)
        run('npm', 'install', '--no-audit', '--no-fund', '--prefix', folder, f'better-sse@{BETTER_SSE}')
    return folder


def nchan():
    "nginx's module nchan; `OSError` if it can't be had"
    if not NGINX: raise OSError('nginx is not installed')
    for place in (Path('/usr/lib/nginx/modules'), ENV/'nchan/usr/lib/nginx/modules'):
        if (module := place/'ngx_nchan_module.so').exists(): return module
    if not shutil.which('apt-get'): raise OSError("nginx has no module nchan (Debian's libnginx-mod-nchan)")
    # Unpacked rather than installed: nothing outside of this folder changes, and it takes no root
    folder = ENV/'nchan'
    folder.mkdir(parents=True, exist_ok=True)
    run('apt-get', 'download', 'libnginx-mod-nchan', cwd=folder)
    run('dpkg-deb', '--extract', next(folder.glob('libnginx-mod-nchan_*.deb')), folder)
    return module


def floor():
    "The floor in C, compiled; `OSError` if it can't be"
    if not (cc := shutil.which('cc')): raise OSError('no C compiler is installed')
    run(cc, '-O2', '-o', ENV/'floor', HERE/'peers'/'floor.c')
    return ENV/'floor'


def versions(interpreter):
    "Name -> version, of all that is measured and measures"
    names = 'python-fasthtml starlette uvicorn uvloop httptools sse-starlette datastar-py websockets hypercorn granian'.split()
    code = f'import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {names!r}}}))'
    found = dict(python='.'.join(map(str, sys.version_info[:3]))) | json.loads(run(interpreter, '-c', code))
    if shutil.which('node'): found |= dict(node=run('node', '--version').strip().lstrip('v'), **{'better-sse': BETTER_SSE})
    if NGINX: found['nginx'] = subprocess.run([NGINX, '-v'], capture_output=True, text=True).stderr.strip().rpartition('/')[2].split()[0]
    if shutil.which('dpkg-deb') and (deb := next((ENV/'nchan').glob('*.deb'), None)): found['nchan'] = run('dpkg-deb', '--field', deb, 'Version').strip().split(':')[-1].split('+')[0]
    return found


if __name__=='__main__':
    print(interpreter := python())
    for need in (better_sse, nchan, floor):
        try: print(need())
        except OSError as e: print(f'without {need.__name__}: {e}')
    print(versions(interpreter))
