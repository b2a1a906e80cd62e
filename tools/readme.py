"""Write README.md from nbs/index.ipynb

    python tools/readme.py           write it
    python tools/readme.py --check   fail when it is not what would be written
"""
import json
import re
import sys
from pathlib import Path
from posixpath import normpath

ROOT = Path(__file__).resolve().parents[1]
NOTICE = '<!-- Written by tools/readme.py from nbs/index.ipynb. To change it, edit that, then run `make prepare`. -->'


def relink(text):
    "Links that are relative to the notebook's folder, made relative to the project's"
    def fix(m): return m[0] if re.match(r'[a-z]+:|#|/', m[2]) else m[1] + normpath('nbs/' + m[2])
    return re.sub(r'(\]\(|\b(?:src|srcset)=")([^)\s"]+)', fix, text)


def build():
    parts = []
    for cell in json.loads((ROOT/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']:
        source = re.sub(r'^\s*#\|.*\n?', '', ''.join(cell['source']), flags=re.M).strip()
        parts.append(f'```python\n{source}\n```' if cell['cell_type'] == 'code' else relink(source))
    head, _, rest = '\n\n'.join(parts).partition('\n')
    return f'{head}\n\n{NOTICE}\n{rest}\n'


def main(check):
    readme, want = ROOT/'README.md', build()
    if check and readme.read_text(encoding='utf-8') != want: sys.exit('README.md is not what nbs/index.ipynb says: run `make prepare`')
    readme.write_text(want, encoding='utf-8')


if __name__ == '__main__': main('--check' in sys.argv[1:])
