"""Everything that CI checks, in one run; `make test` starts it

    python tools/check.py                  all checks
    python tools/check.py lint notebooks   some of them

Every check runs, also after one has failed. The last line counts notebooks, pytest's tests and the other checks together.
Up to eight failed tests are run once more, alone; those that pass then count as passed, and are called UNSTEADY.
"""
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import assets

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT/'cjm_fasthtml_sse'
BIN = Path(sys.executable).parent
ENV = {**os.environ, 'PATH': f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", 'PYTHONUNBUFFERED': '1', 'DEBIAN_FRONTEND': 'noninteractive'}
DEBIAN = {'chromium': 'chromium', 'chromium-headless-shell': 'chromium-headless-shell', 'firefox-esr': 'firefox-esr', 'redis-server': 'redis-server', 'node': 'nodejs', 'npm': 'npm',
          'nginx': 'nginx', 'caddy': 'caddy', 'openssl': 'openssl'}  # command: its package


def shares(pattern, n): return [sorted(map(str, ROOT.glob(pattern)))[i::n] for i in range(n)]


PARTS = [['tests/browser'], ['tests/contract/browser'], *shares('tests/contract/test_*.py', 3), *shares('tests/test_*.py', 5)]  # The longest first, so that all sides end together
SIDES = 3  # So many of them at a time: they wait for most of their time, on two cores, too
AGAIN = 8  # Failed tests that are run once more: where more have failed, it is not the machine
CHECKS = {}


class Failed(Exception): "A check that did not pass; says why and what to do"


def check(f):
    "Register `f`; what it returns is (passed, failed), or nothing for one check that passed"
    CHECKS[f.__name__] = f
    return f


def run(*cmd, secs=900, cwd=ROOT, ok=(0,), quiet=False, **env):
    "Run `cmd` for at most `secs` seconds; its output, printed as it comes unless `quiet`"
    proc = subprocess.Popen([str(c) for c in cmd], cwd=cwd, env=ENV | env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
    def kill():
        with suppress(ProcessLookupError): os.killpg(proc.pid, signal.SIGKILL)
    timer, start, lines = threading.Timer(secs, kill), time.monotonic(), []
    timer.start()
    try:
        for line in proc.stdout:
            lines.append(line)
            if not quiet: print(line, end='', flush=True)
        proc.wait()
    finally:
        timer.cancel()
        kill()  # whatever it started and left behind
    if time.monotonic() - start >= secs: raise Failed(f'{cmd[0]} did not end within {secs} seconds')
    if proc.returncode not in ok:
        if quiet: print(''.join(lines[-40:]), end='')
        raise Failed(f'{cmd[0]} ended with {proc.returncode}')
    return ''.join(lines)


@check
def system():
    "Programs from Debian that the tests drive; what is not there is installed, which takes root"
    missing = [o for cmd, o in DEBIAN.items() if not shutil.which(cmd, path=f"{ENV['PATH']}:/usr/sbin:/sbin")]  # Servers are often there
    needed = [o for o in missing if 'headless' not in o]  # Chromium does it, too, and is slower
    if missing and shutil.which('apt-get') and not os.geteuid():
        run('apt-get', 'update', '-qq', secs=180, ok=(0, 100), quiet=True)
        run('apt-get', 'install', '-y', '-qq', '--no-install-recommends', *missing, secs=1500, ok=(0,) if needed else (0, 100), quiet=True)
    elif needed: raise Failed(f"not found. As root: apt-get install {' '.join(needed)}")


@check
def scripts():
    "Packages from npm that the tests load, as package.json pins them"
    if not assets.fetch(dev=True): raise Failed(f"npm did not install {', '.join(assets.missing(dev=True))}")


@check
def export():
    "Notebooks are clean, and the package is what they export"
    def files(): return {f: f.read_bytes() for d in (ROOT/'nbs', PACKAGE) for f in d.rglob('*') if f.suffix in ('.ipynb', '.py') and '.ipynb_checkpoints' not in f.parts}
    before = files()
    run(BIN/'nbdev-clean')
    run(BIN/'nbdev-export')
    after = files()
    changed = sorted(f.relative_to(ROOT).as_posix() for f in before.keys() | after.keys() if before.get(f) != after.get(f))
    if changed: raise Failed(f"out of step until now, mended in your tree: {', '.join(changed)}. Look at the change and commit it")
    if os.environ.get('CI') and (stale := run('git', 'status', '--porcelain', '--', 'nbs', PACKAGE, quiet=True)): raise Failed(f'not what git holds:\n{stale}')


def command(name, about, *cmd):
    "A check that is one command"
    def f(): run(*cmd)
    f.__name__, f.__doc__ = name, about
    check(f)


command('lint', 'ruff on notebooks, package, tests, tools and demo; its settings are in pyproject.toml', BIN/'ruff', 'check', '--quiet', '--output-format', 'concise', '.')
command('javascript', "tsc --checkJs on the package's scripts; its settings are in tsconfig.json", 'node', ROOT/'.assets/node_modules/typescript/bin/tsc', '--project', ROOT)
command('readme', 'README.md is what nbs/index.ipynb says', sys.executable, ROOT/'tools/readme.py', '--check')
command('docs', 'The site renders, and no link leads nowhere', sys.executable, ROOT/'tools/docs.py')


def whole(source):
    "The lines of a module, each with its number, where the methods that `@patch` adds to a class stand in that class: ty reads no decorators"
    body, lines = ast.parse(source).body, source.split('\n')
    classes = {n.name: n for n in body if isinstance(n, ast.ClassDef)}
    moved = {}  # The last line of a class: the methods to put behind it
    for n in body:
        how = ast.unparse(n.decorator_list[0]) if getattr(n, 'decorator_list', ()) else ''
        cls = re.search(r'\w+', how.removeprefix('patch_to') if 'patch_to' in how else ast.unparse(n.args.args[0].annotation))[0] if how[:5] == 'patch' else ''
        if cls not in classes: continue
        kind = next((f'@{k}' for k, v in dict(property='as_prop', classmethod='cls_method', staticmethod='static_method').items() if v in how), '')
        first = n.decorator_list[0].lineno
        text = '\n'.join(lines[first:n.end_lineno]).replace(f'self:{cls}', 'self', 1).replace(f'cls:{cls}', 'cls', 1)
        moved.setdefault(classes[cls].end_lineno, []).extend(enumerate(['    ' + o for o in (kind, *text.split('\n'))], first))
    gone = {i for methods in moved.values() for i, _ in methods}
    for i, line in enumerate(lines, 1):
        if i not in gone: yield i, line.replace('__all__ =', 'from __future__ import annotations; __all__ =', 1)
        yield from moved.get(i, ())


@check
def types():
    "ty on the exported package"
    with tempfile.TemporaryDirectory() as tmp:
        shutil.copytree(PACKAGE, copy := Path(tmp)/PACKAGE.name)
        shutil.copy(ROOT/'pyproject.toml', tmp)
        numbers = {}
        for f in copy.rglob('*.py'):
            numbers[f.relative_to(tmp).as_posix()], text = zip(*whole(f.read_text(encoding='utf-8')))
            f.write_text('\n'.join(text), encoding='utf-8')
        # A default value may stand below the class, and undefined names are ruff's
        out = run(BIN/'ty', 'check', '--ignore', 'unresolved-reference', '--python', sys.prefix, '--no-progress', '--output-format', 'concise', copy.name, cwd=tmp, ok=(0, 1), quiet=True)
    print(re.sub(r'^(\S+?):(\d+)', lambda m: f'{m[1]}:{numbers[m[1]][int(m[2])-1]}', out, flags=re.M))
    if 'error[' in out: raise Failed('ty found errors')


@check
def notebooks():
    "Every lesson holds"
    def test(*args): return lessons(run(BIN/'nbdev-test', *args, '--do-print', ok=(0, 1)))
    passed, failed = test('--n-workers', '2')
    again = failed if len(failed) > AGAIN else [o for o in failed if any(test(f)[1] for f in (ROOT/'nbs').rglob(o))]  # As tests: what fails twice has failed
    for o in failed: print(f"{'FAILED' if o in again else 'UNSTEADY'}: {o}")
    return passed + len(failed) - len(again), len(again)


def lessons(out):
    "How many notebooks passed in what nbdev-test printed, and the names of those that failed"
    ended, failed = out.count('- Completed '), re.findall(r'^\t(.+\.ipynb)$', out.partition('Tests Failed On')[2], re.M)
    if not ended or not failed and 'Success.' not in out: raise Failed('nbdev-test has not come to its end')
    return ended - len(failed), failed


def outcome(*reports):
    "How many tests passed in JUnit reports of pytest, and the names of those that failed"
    passed, failed = 0, set()
    for case in [c for f in reports for c in ET.parse(f).iter('testcase')]:
        found = {o.tag for o in case}
        if found & {'failure', 'error'}: failed.add(f"{case.get('classname')}::{case.get('name')}")
        elif 'skipped' not in found: passed += 1
    return passed, failed


@check
def tests():
    "pytest: what needs a browser, a server process, Redis, or time"
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(SIDES) as pool:
        reports = [f'{tmp}/{i}.xml' for i in range(len(PARTS))]
        def pytest(report, part, *args):
            out = run(sys.executable, '-m', 'pytest', '-q', '--color=no', '--durations=10', f'--junit-xml={report}', '-o', f'cache_dir={report}.cache', *part, *args, secs=5400, ok=(0, 1, 5) if args else (0, 1), quiet=True)
            print(f'\n{part[0]}:\n{out}', flush=True)
        [*pool.map(pytest, reports, PARTS)]
        passed, failed = outcome(*reports)
        if 0 < len(failed) <= AGAIN:
            # On a slow and busy machine a few of thousands wait in vain. They are run alone then: what fails twice has failed
            for o in zip(reports, PARTS, strict=True): pytest(*o, '--last-failed', '--last-failed-no-failures=none')
            right, again = outcome(*reports)
            for o in sorted(failed - again): print(f'UNSTEADY: {o} failed beside others and passed alone, see above: the test is to be mended, or the code')
            passed, failed = passed + right, again
        for o in sorted(failed): print(f'FAILED: {o}')
        return passed, len(failed)


def main(names):
    if unknown := set(names) - CHECKS.keys(): sys.exit(f"no such check: {', '.join(unknown)}. There are: {', '.join(CHECKS)}")
    rows, begin = [], time.monotonic()
    for name, f in [o for o in CHECKS.items() if not names or o[0] in names]:
        print(f'\n== {name}: {f.__doc__}', flush=True)
        start = time.monotonic()
        try: passed, failed = f() or (1, 0)
        except Exception as e:  # also a bug in a check must not keep the others from running
            print(f'FAILED: {e}' if isinstance(e, Failed) else f'FAILED: {type(e).__name__}: {e}')
            passed, failed = 0, 1
        rows.append((name, passed, failed, time.monotonic() - start))
        print(f'-- {rows[-1][3]:.1f} s', flush=True)
    print(f'\n{"check":12} {"passed":>6} {"failed":>6} {"seconds":>8}')
    for name, passed, failed, secs in rows: print(f'{name:12} {passed:6} {failed:6} {secs:8.1f}')
    print(f'{"":26} {time.monotonic() - begin:8.1f}\n')
    print(f'{sum(r[1] for r in rows)} passed, {sum(r[2] for r in rows)} failed')
    return any(r[2] for r in rows)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
