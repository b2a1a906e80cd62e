"""Install what package.json names into .assets/, an ignored folder, with npm

    python tools/assets.py          what a page loads: htmx and its SSE extension
    python tools/assets.py --dev    also what the tests and the JavaScript check run

The files then lie at .assets/node_modules/<package>/...; without npm a page loads them from their CDN.
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT/'.assets'


def folder() -> Path|None:
    "Where the installed packages lie; `None` where they were not fetched"
    res = ASSETS/'node_modules'
    return res if res.is_dir() else None


def missing(dev=False) -> list[str]:
    "What package.json names in a version other than the installed one"
    wanted = json.loads((ROOT/'package.json').read_text(encoding='utf-8'))
    pins = wanted['dependencies'] | (wanted['devDependencies'] if dev else {})
    def installed(name):
        f = ASSETS/'node_modules'/name/'package.json'
        return f.exists() and json.loads(f.read_text(encoding='utf-8'))['version']
    return [name for name, pin in pins.items() if installed(name) != pin.rpartition('@')[2]]


def fetch(dev=False) -> bool:
    "Install what is missing; whether all is there"
    if not missing(dev): return True
    npm = shutil.which('npm')
    if not npm: return False
    ASSETS.mkdir(exist_ok=True)
    for name in ('package.json', '.npmrc'): shutil.copy(ROOT/name, ASSETS)
    cmd = [npm, 'install', '--no-audit', '--no-fund', '--no-package-lock', '--ignore-scripts', '--loglevel=error']
    if not dev: cmd.append('--omit=dev')
    try: subprocess.run(cmd, cwd=ASSETS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=180)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired): return False
    return not missing(dev)


def main(dev):
    ok = fetch(dev)
    if ok: print(f'Browser scripts: {ASSETS.relative_to(ROOT)}/node_modules')
    elif shutil.which('npm'): print('npm could not fetch the browser scripts: the page loads them from their CDN.')
    else: print('npm was not found: the page loads the browser scripts from their CDN.')
    return 0 if ok or not dev else 1


if __name__ == '__main__': sys.exit(main('--dev' in sys.argv[1:]))
