"""What would else be silent is said in the log: once for each place in the app, with the name and what to write instead

A page without `setup_sse`, a stream whose manager the app does not know, an event that no handler covers, a function that holds
up the event loop. Nothing is said of an app in which all is well. `tests/contract/apps/silent.py` has the apps, and runs in a
process of its own, as each thing is said once in a process.
"""
import json
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent/'apps'/'silent.py'


@pytest.fixture(scope='module')
def said():
    "What the log says, by app"
    done = subprocess.run([sys.executable, APP], capture_output=True, text=True, timeout=60)
    assert done.returncode==0, done.stderr
    found = json.loads(done.stdout)
    assert all(level=='WARNING' for lines in found.values() for _,level,_ in lines)
    return {name: [text for *_,text in lines] for name,lines in found.items()}


@pytest.mark.parametrize('name', ['set_up', 'handled', 'default_handler', 'somebody_elses', 'a_function', 'no_renderer'])
def test_all_is_well(said, name): assert said[name]==[]


@pytest.mark.parametrize('name, lines', [
    ('forgotten', [["'/forgotten'", 'setup_sse(app, sse)'], ["'/forgotten/events'", 'setup_sse', 'silent.py:']]),
    ('other_manager', [["'/other_manager/events'", 'setup_sse', 'silent.py:']]),
    ('extension_alone', [["'/extension_alone/events'", 'setup_sse', 'silent.py:']]),
    ('misspelt', [["'todo:aded0'", "'todo:added'", 'silent.py:']]),
    ('misspelt_for_a_dispatcher', [["'job:don'", "'job:done'", 'silent.py:']]),
    ('slow_snapshot', [['slow_state', 'silent.py:', 'asyncio.to_thread']]),
    ('slow_renderer', [['slow_rendering', 'silent.py:', 'asyncio.to_thread']])])
def test_what_is_missing(said, name, lines):
    "Each once, however often it happens, and however many names come from outside"
    assert len(said[name])==len(lines)
    for text,parts in zip(said[name], lines):
        for part in parts: assert part in text
