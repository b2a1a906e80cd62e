"""Put what was measured into the pages that show it: runs their notebooks anew, which read results/, and keeps what they print

    python bench/pages.py           all of them
    python bench/pages.py workers   one of them
"""
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from execnb.shell import CaptureShell

NBS = Path(__file__).resolve().parent.parent/'nbs'
PAGES = NBS/'speed.ipynb', NBS/'tutorials'/'comparison.ipynb', NBS/'tutorials'/'workers.ipynb'

for path in PAGES:
    if not path.exists() or sys.argv[1:] and path.stem not in sys.argv[1:]: continue
    with chdir(path.parent): CaptureShell().execute(path, path, exc_stop=True)  # As the tests run it
    subprocess.run([Path(sys.executable).parent/'nbdev-clean', '--fname', path], check=True)
    print('->', path.relative_to(NBS.parent))
