"Hands settings.ini's requirement sets and classifiers to setuptools; pyproject.toml holds the rest."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

STATUS = dict(enumerate(('Planning', 'Pre-Alpha', 'Alpha', 'Beta', 'Production/Stable', 'Mature', 'Inactive'), 1))
SETS = '_requirements'

parser = ConfigParser(interpolation=None)
with open(Path(__file__).parent/'settings.ini', encoding='utf-8') as f: parser.read_file(f)
cfg = parser['DEFAULT']
status = cfg.getint('status')

setup(
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix(SETS): v.split() for k,v in cfg.items() if k.endswith(SETS)},
    classifiers=[
        f'Development Status :: {status} - {STATUS[status]}',
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        'Framework :: AsyncIO',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Internet :: WWW/HTTP',
    ],
)
