"""Install what a page loads, htmx and its SSE extension, into .assets/, an ignored folder, with npm

`python tools/check.py scripts` installs what the tests and the JavaScript check run, too; package.json names all. The files then
lie at .assets/node_modules/<package>/...; without npm a page loads them from their CDN.
"""
import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT/'.assets'
MODULES = ASSETS/'node_modules'


def missing(dev=False) -> list[str]:
    "What package.json names in a version other than the installed one"
    wanted = json.loads((ROOT/'package.json').read_text(encoding='utf-8'))
    pins = wanted['dependencies'] | (wanted['devDependencies'] if dev else {})
    def installed(name):
        f = MODULES/name/'package.json'
        return f.exists() and json.loads(f.read_text(encoding='utf-8'))['version']
    return [name for name, pin in pins.items() if installed(name) != pin.rpartition('@')[2]]


def fetch(dev=False) -> bool:
    "Install what is missing; whether all is there"
    if not missing(dev): return True
    if not (npm := shutil.which('npm')): return False
    ASSETS.mkdir(exist_ok=True)
    for name in ('package.json', '.npmrc'): shutil.copy(ROOT/name, ASSETS)
    cmd = [npm, 'install', '--no-audit', '--no-fund', '--no-package-lock', '--ignore-scripts', '--loglevel=error', *['--omit=dev'] * (not dev)]
    with suppress(subprocess.TimeoutExpired): subprocess.run(cmd, cwd=ASSETS, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=180)
    return not missing(dev)


if __name__ == '__main__':
    print(f'Browser scripts: {MODULES.relative_to(ROOT)}' if fetch() else 'npm did not fetch the browser scripts: pages load them from their CDN')
