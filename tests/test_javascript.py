"Scripts that need no page, under `node --test`"
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = sorted((Path(__file__).parent/'js').glob('*.test.mjs'))


@pytest.mark.parametrize('script', TESTS, ids=lambda o: o.name.partition('.')[0])
def test_javascript(script):
    node = shutil.which('node')
    assert node, 'These tests need Node: apt-get install nodejs'
    done = subprocess.run([node, '--test', script], capture_output=True, text=True, timeout=170)
    assert not done.returncode, done.stdout+done.stderr
