"Imports point down, never up and never in a circle; what is only needed in one place is imported in that place alone"
import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

NAME = 'cjm_fasthtml_sse'
PACKAGE = Path(__file__).parents[1]/NAME

# Lowest first: a module imports modules of its own line and of those above it in this list
LAYERS = [o.split() for o in '''
engine.wire engine.checks engine.patterns engine.messages engine.hints engine.middleware engine.render engine.servers
engine.transport
engine.loop engine.users engine.group engine.local
engine.access engine.sender engine.catch_up engine.connection engine.pump engine.queues
engine.hub engine.request engine.response
backends.base backends.memory backends.packing
backends.records backends.session
backends.redis_connection backends.redis_entries backends.redis_reports
backends.redis_writer backends.redis_reader backends.redis
backends.sqlite_driver backends.sqlite_file backends.sqlite_log
backends.sqlite_writer backends.sqlite_reader backends.sqlite_triggers backends.sqlite_alarm
backends.sqlite_thread backends.sqlite_transaction backends.sqlite_reading backends.sqlite_watch backends.sqlite_uninstall backends.sqlite
live.tree live.changes live.arguments live.query
live.drawing
manager.admission manager.hooks manager.broadcast manager.cluster manager.delivery manager.outbox manager.presence
manager.block manager.database
live.registry live.updates live.view live.views
live.element
core
visitor
multiplex.protocol multiplex.request multiplex.channel multiplex.carrier multiplex.endpoint live.endpoint
dispatcher updater htmx
compress headers guards
setup
helpers job charts
progress dashboard testing
monitoring
common
'''.strip().splitlines()]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


@cache
def imports():
    "Module -> the modules of the package, and the packages outside, that it imports"
    res = {}
    for file in sorted(PACKAGE.rglob('*.py')):
        parts = file.relative_to(PACKAGE).with_suffix('').parts
        if parts[-1] in ('__init__', '_modidx'): continue
        found = res['.'.join(parts)] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): found |= {o.name.split('.')[0] for o in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level:
                found.add('.'.join(['', *parts[:len(parts) - node.level], *filter(None, [node.module])]))
            elif isinstance(node, ast.ImportFrom):
                package, _, rest = node.module.partition('.')
                found.add(f'.{rest}' if rest and package == PACKAGE.name else package)
    return res


def path(module): return PACKAGE/f'{module.replace(".", "/")}.py'


def inner(module): return {o[1:] for o in imports()[module] if o.startswith('.')}


def test_imports_point_down():
    "And every module has a layer"
    assert not [(m, o) for m in imports() for o in inner(m) if LEVEL[o] > LEVEL[m]]


def test_the_page_of_the_architecture_names_every_module():
    page = (PACKAGE.parent/'nbs/architecture.ipynb').read_text(encoding='utf-8')
    assert not [o for o in imports() if f"]({o.replace('.', '/')}.ipynb)" not in page]


def test_there_is_no_circle(): assert [*TopologicalSorter({o: inner(o) for o in imports()}).static_order()]


def test_elements_are_made_in_the_upper_half():
    assert min(LEVEL[o] for o, found in imports().items() if 'fasthtml' in found) > LEVEL['core']


def test_redis_and_servers_are_known_in_one_module_each():
    assert {o for o, found in imports().items() if 'redis' in found} == {'backends.redis_connection'}
    servers = re.compile('uvicorn|hypercorn|granian|gunicorn', re.IGNORECASE)
    assert [o for o in imports() if servers.search(path(o).read_text(encoding='utf-8'))] == ['engine.servers']


@pytest.mark.parametrize('module,banned', [('engine.wire', ['fastcore', 'starlette', 'asyncio']), ('core', ['fasthtml', 'redis']),
                                           ('testing', ['fasthtml']), ('updater', ['starlette', 'fasthtml']),
                                           ('backends.redis', ['fasthtml', f'{NAME}.core'])])
def test_nothing_heavy_comes_along(module, banned):
    code = f'import sys, {NAME}.{module}; print(*[o for o in {banned!r} if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=30).stdout.split() == []
