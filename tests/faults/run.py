"""Does the judge see? Put each fault into a copy of the package, and run the contract suites on it

    python tests/faults/run.py              all, two at a time
    python tests/faults/run.py slow Back    those with one of these words in their description

A fault is caught when a contract test fails on it, and passes without it. Each run ends at its first failure; the file that
a fault names runs first, and all others behind it. A run that does not end is not a catch.
"""
import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.faults import Fault  # noqa: E402

AREAS = 'delivery', 'modules', 'servers', 'browser', 'live_security', 'live_drawing', 'live_changes'
PACKAGE = 'cjm_fasthtml_sse'
COPIED = PACKAGE, 'tests', 'tools', 'demo', 'examples', 'nbs', 'pyproject.toml', 'package.json', 'settings.ini'
CONTRACT = 'tests/contract'
BROWSER = f'{CONTRACT}/browser'
LIMIT = 600     # Seconds for one run
TEST_LIMIT = 60 # and for one test of it


@dataclass
class Result:
    fault: Fault
    caught: str = ''    # The test that failed
    why: str = ''       # What it said; or why nothing was caught
    secs: float = 0.


def all_faults():
    "Every fault, each with words of its own"
    res = [fault for area in AREAS for fault in importlib.import_module(f'tests.faults.{area}').FAULTS]
    if len({o.words for o in res})<len(res): raise ValueError('two faults have the same words')
    return res


def copy(name, folder):
    "Copy a file or folder of the project into `folder`"
    if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    else: shutil.copy(ROOT/name, folder/name)


def restore(folder):
    "Put the package into a copy as it is, without a fault; the package's folder there"
    shutil.rmtree(folder/PACKAGE)
    copy(PACKAGE, folder)
    return folder/PACKAGE


def copy_to(folder):
    "A copy of what the suites need, in which faults can be planted"
    for name in COPIED: copy(name, folder)
    if (ROOT/'.assets').exists(): (folder/'.assets').symlink_to(ROOT/'.assets')


def pytest(folder, *args):
    "Run pytest in a copy; (exit code or `None` where it did not end, first failure, what it said)"
    report = folder/'report.xml'
    report.unlink(missing_ok=True)
    env = {**os.environ, 'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1', 'CONTRACT_BOUND': os.environ.get('CONTRACT_BOUND', '12')}
    cmd = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '--color=no', f'--timeout={TEST_LIMIT}', f'--junit-xml={report}', *map(str, args)]
    with open(folder/'out.txt', 'w') as out:
        proc = subprocess.Popen(cmd, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        try: code = proc.wait(LIMIT)
        except subprocess.TimeoutExpired: code = None
        finally:
            try: os.killpg(proc.pid, signal.SIGKILL)  # Also what it started and left behind
            except ProcessLookupError: pass
            proc.wait()
    if not report.exists(): return code, '', (folder/'out.txt').read_text(errors='replace')[-300:]
    for case in ET.parse(report).iter('testcase'):
        for bad in (*case.findall('failure'), *case.findall('error')):
            file = case.get('classname', '').split('.')
            path = next(('/'.join(file[:i])+'.py' for i in range(len(file), 0, -1) if (folder/('/'.join(file[:i])+'.py')).exists()), '')
            rest = '::'.join([*file[path.count('/')+1:], case.get('name', '')])
            return code, f'{path}::{rest}', f'{bad.tag}: ' + (bad.get('message') or '').strip().split('\n')[0][:150]
    return code, '', ''


def fair(why):
    "Is this how a test says what is wrong? Neither a time limit nor a fixture that could not begin is"
    return why.startswith(('failure:', 'error: failed on teardown')) and 'Timeout (>' not in why


def suites(first):
    "Arguments for pytest: the file that a fault names, then all others; browsers in a run of their own"
    if first.startswith('tests/'): return [[first]]
    rest = sorted(str(f.relative_to(ROOT)) for f in (ROOT/CONTRACT).rglob('test_*.py'))
    named = f'{CONTRACT}/{first}'
    if named not in rest: raise LookupError(f'{named} is not there')
    others = [f for f in rest if f!=named]
    browser = [f for f in others if f.startswith(BROWSER)]
    return [named], [f for f in others if f not in browser], browser


def attempt(fault, folder):
    "Plant a fault, and run the suites until a test fails"
    begin, res = time.monotonic(), Result(fault)
    try:
        fault.apply(restore(folder))
        for files in suites(fault.suite):
            if not files: continue
            code,test,why = pytest(folder, *files)
            if code is None: res.why = f'{files[0]} and what follows did not end in {LIMIT} s'
            elif test and fair(why): res.caught,res.why = test,why
            elif code: res.why = f'{test} {why} (pytest ended with {code})'
            if code!=0: break
        else: res.why = 'all tests passed'
    except LookupError as e: res.why = str(e)
    res.secs = time.monotonic()-begin
    return res


def control(results, folder):
    "What caught a fault must pass where there is none, or it proves nothing"
    restore(folder)
    tests = sorted({o.caught for o in results if o.caught})
    for browser in False, True:
        if not (some := [t for t in tests if ('/browser/' in t)==browser]): continue
        code,test,why = pytest(folder, *some)
        if code: return test or why
    return ''


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('words', nargs='*', help='only faults with one of these in their description')
    parser.add_argument('--jobs', type=int, default=2, help='how many at a time')
    args = parser.parse_args()
    faults = [o for o in all_faults() if not args.words or any(w.lower() in o.words.lower() for w in args.words)]
    if not faults: sys.exit('no such fault')
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as tmp:
        folders = []
        for i in range(args.jobs):
            folders.append(Path(tmp)/str(i))
            folders[-1].mkdir()
            copy_to(folders[-1])
        where = subprocess.run([sys.executable, '-c', 'import cjm_fasthtml_sse; print(cjm_fasthtml_sse.__file__)'], cwd=folders[0]/'tests', capture_output=True,
            text=True, check=True, env={**os.environ, 'PYTHONPATH': str(folders[0])}).stdout
        if not where.startswith(str(folders[0])): sys.exit(f'faults would be put into a copy that is not run: {where}')
        free = folders.copy()
        def one(fault):
            folder = free.pop()
            try: return attempt(fault, folder)
            finally: free.append(folder)
        results = []
        with ThreadPoolExecutor(args.jobs) as pool:
            # Browsers first: they take longest
            for res in pool.map(one, sorted(faults, key=lambda o: 'browser/' not in o.suite)):
                results.append(res)
                print(f"{len(results):3} {'caught' if res.caught else 'MISSED'} {res.secs:5.0f} s  {res.fault.words}\n{'':18}{res.caught or res.why}", flush=True)
        bad = control(results, folders[0])
    caught = sum(bool(o.caught) for o in results)
    if bad: print(f'\nfails without a fault, too: {bad}')
    print(f'\n{caught} of {len(results)} faults caught in {(time.monotonic()-begin)/60:.1f} minutes')
    return caught<len(results) or bool(bad)


if __name__ == '__main__': sys.exit(main())
