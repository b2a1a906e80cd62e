"What is built and uploaded: the package and nothing else"
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT/'cjm_fasthtml_sse'
OWN = {f.relative_to(ROOT).as_posix() for kind in ('py', 'js', 'css') for f in PACKAGE.rglob(f'*.{kind}') if '__pycache__' not in f.parts}


def files():
    "What git holds or would hold; where there is no git, what belongs to a source distribution"
    git = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode: return [f for f in (*ROOT.glob('*.*'), ROOT/'LICENSE', *PACKAGE.rglob('*')) if f.is_file()]
    return [f for o in git.stdout.split('\0') if o and (f := ROOT/o).is_file()]


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "An sdist from a clean copy, and a wheel from that sdist alone"
    copy,dist = tmp_path_factory.mktemp('copy'),tmp_path_factory.mktemp('dist')
    for f in files():
        to = copy/f.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, to)
    subprocess.run([sys.executable, '-m', 'build', '--outdir', dist, copy], check=True, capture_output=True, timeout=170)
    return next(dist.glob('*.tar.gz')),next(dist.glob('*.whl'))


def test_wheel_holds_the_package_alone(built, tmp_path):
    with zipfile.ZipFile(built[1]) as z:
        names = set(z.namelist())
        meta = Parser().parsestr(z.read(next(n for n in names if n.endswith('.dist-info/METADATA'))).decode())
        z.extractall(tmp_path)
    assert {n for n in names if '.dist-info/' not in n}==OWN
    assert any(n.endswith('/licenses/LICENSE') for n in names)
    assert {'dev', 'redis'} <= set(meta.get_all('Provides-Extra', []))
    modules = sorted(n[:-3].replace('/', '.') for n in OWN if n.endswith('.py') and not n.endswith('/__init__.py'))
    code = f'import sys, importlib; sys.path.insert(0, {str(tmp_path)!r})\n' \
           f'for m in {modules!r}: assert importlib.import_module(m).__file__.startswith({str(tmp_path)!r}), m'
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True, timeout=60)


def test_sdist_holds_what_a_build_needs(built):
    with tarfile.open(built[0]) as t: names = {n.partition('/')[2] for n in t.getnames() if '/' in n}
    assert OWN | {'settings.ini', 'LICENSE', 'README.md'} <= names
    assert not {n for n in names if n.split('/')[0] in ('nbs', 'tests', 'tools', 'demo', 'bench', 'docs')}
