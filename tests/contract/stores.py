"""What broadcasts may go through, and what each of it can do: a backend that is written next is one entry of `STORES`

A test that every backend must pass takes `store`, which `conftest` gives it once for each entry. What else a test needs is
said by `@pytest.mark.needs('transaction')`: it runs over those that can. A backend has a subclass of `Store` that says how to
begin and what it `can` do. What is true of one backend alone has tests of its own, such as `test_over_sqlite`.

Two managers of this process play two workers. What nobody but another process may do is done by a shell, which knows nothing
of the library; what is in the log is read by a process that does nothing else.
"""
import asyncio
import atexit
import json
import sqlite3
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count

import pytest

from cjm_fasthtml_sse.backends.redis import RedisBackend
from cjm_fasthtml_sse.backends.sqlite import SQLiteBackend
from cjm_fasthtml_sse.core import SSEBroadcastManager
from tests.contract.support import BOUND

needs_apsw = pytest.mark.skipif(not find_spec('apsw'), reason='needs apsw')

SHELL = '''
import json, os, shutil, sqlite3, sys
path = sys.argv[1]
c = sqlite3.connect(path, isolation_level=None, timeout=20)
def sql(text, *args): return c.execute(text, args).fetchall()
def restore(backup): sqlite3.connect(backup).backup(c)
def burst(n):
    sql('begin immediate')
    c.executemany("insert into sse_log(fields) values (json_object('type', 'n', 'data', ?))", [(i,) for i in range(n)])
    sql('commit')
for line in sys.stdin:
    try: print(json.dumps(eval(line)), flush=True)
    except Exception as e: print(json.dumps(f'{type(e).__name__}: {e}'), flush=True)
'''

READER = '''
import asyncio, json, sys
from cjm_fasthtml_sse.core import SSEBroadcastManager
async def read(address):
    m = SSEBroadcastManager(backend=address, history_size=10**6, replay_size=10**6)
    await m.open()
    try: return [[o['type'], o['data']] for o in m.get_history(private=True)]
    finally: await m.close()
for line in sys.stdin: print(json.dumps(asyncio.run(read(json.loads(line)))), flush=True)
'''


class Process:
    "A Python that answers each line of JSON or code with one of JSON; `with`"
    def __init__(self, code, *args):
        self.process = subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self): return self
    def __exit__(self, *exc): self.end()

    def end(self):
        self.process.stdin.close()
        self.process.wait(BOUND)
        self.process.stdout.close()

    def run(self, line):
        print(line, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


class Shell(Process):
    "Another process that has a file open with `sqlite3`; `run` gives the value of an expression there"
    def __init__(self, path): super().__init__(SHELL, path)

    def sql(self, text):
        "The rows"
        return self.run(f'sql({text!r})')

    def say(self, type, data=None):
        "Broadcast, as any program may"
        self.sql(f"insert into sse_log(fields) values (json_object('type', '{type}', 'data', json('{json.dumps(data)}')))")

    def write(self, table, *ns):
        "Commit numbers, each together with its message"
        for n in ns: self.sql('begin immediate'), self.sql(f'insert into {table} values({n})'), self.say('n', n), self.sql('commit')


class Played(SQLiteBackend):
    "In one process, two on one file are refused, as each would receive what the other broadcasts"
    address = None


def connection(path, library='sqlite3'):
    "What an app has"
    if library == 'sqlite3': return sqlite3.connect(path, isolation_level=None)
    import apsw
    return apsw.Connection(str(path))


@cache
def reader():
    "One for all tests"
    res = Process(READER)
    atexit.register(res.end)
    return res


@asynccontextmanager
async def opened(made):
    "Managers, which are closed in the end"
    try: yield made
    finally:
        for m in made: await m.close()


def managers(path, n=2, **kw):
    "Managers that share a file as several processes do; `kw` goes to their backends"
    return opened([SSEBroadcastManager(backend=Played(path, **kw)) for _ in range(n)])


async def in_thread(f, *args): return await asyncio.wait_for(asyncio.to_thread(f, *args), BOUND)


class Store:
    """One place over which processes meet, which nobody has used; `other()` is another one, with which it has nothing in common

    What it `can`: `processes` share it, an app has a `transaction` in it and is `reading`, and it can `watch` tables.
    """
    can, drivers, marks = frozenset(), (None,), ()  # `drivers`: libraries by which an app may reach it

    @classmethod
    def begin(cls, request, driver=None):
        "The one for a test; `request` gives its fixtures"
        raise NotImplementedError

    address = None  # For `SSEBroadcastManager(backend=address)` of any process
    def other(self): raise NotImplementedError
    def played(self, worker=0, **kw): "What the worker of this number has as its backend"; raise NotImplementedError

    def workers(self, n=2, backend=None, **kw):
        "Managers as `n` processes have them; `kw` is for each, and `backend` for what is behind it"
        return opened([SSEBroadcastManager(backend=self.played(i, **backend or {}), **kw) for i in range(n)])

    def history(self):
        "(type, data) of all that is in the log"
        return [tuple(o) for o in reader().run(json.dumps(self.address))]

    # Of those that can more
    patient = {}  # For `backend` where many wait for one another
    env = {}      # Says to an app of the folder apps where it is
    def shell(self): "Another process, with `sql(text)`, `say(type, data)`, and `write(table, *numbers)`, which says each"; raise NotImplementedError
    def connect(self): "What an app has"; raise NotImplementedError
    def make_table(self, name): return f'create table if not exists {name}(n)'


class Memory(Store):
    "Nothing: what is broadcast stays in this process"
    @classmethod
    def begin(cls, request, driver=None): return cls()
    def played(self, worker=0): return None


class SQLite(Store):
    can, drivers = frozenset({'processes', 'transaction', 'reading', 'watch'}), ('sqlite3', pytest.param('apsw', marks=needs_apsw))
    patient = dict(timeout=BOUND)

    @classmethod
    def begin(cls, request, driver=None): return cls(request.getfixturevalue('whole_file'), driver)

    def __init__(self, path, library=None): self.path, self.library, self.numbers = path, library, count(1)
    @property
    def address(self): return f'sqlite:///{self.path}'
    def other(self): return SQLite(self.path.with_name(f'other{next(self.numbers)}.db'), self.library)
    def played(self, worker=0, **kw): return Played(self.path, **dict(library=self.library) | kw)
    def shell(self): return Shell(self.path)
    def connect(self): return connection(self.path, self.library or 'sqlite3')
    @property
    def env(self): return dict(URL=self.address, FASTLITE='1' if self.library == 'apsw' and find_spec('fastlite') else '')


class Redis(Store):
    can, marks = frozenset({'processes'}), (pytest.mark.redis,)
    numbers = count(10)

    @classmethod
    def begin(cls, request, driver=None): return cls(request.getfixturevalue('redis_server'))

    def __init__(self, server): self.server, self.number = server, next(self.numbers)
    @property
    def address(self): return self.server.url(self.number)
    def other(self): return Redis(self.server)
    def played(self, worker=0, **kw): return RedisBackend(self.server.url(self.number, ('127.0.0.1', 'localhost')[worker]), **kw)


STORES = dict(memory=Memory, sqlite=SQLite, redis=Redis)


def each(*needs, drivers=False):
    "What a test is run over: each store that can do what it needs; with all `drivers`, or by the first one"
    found = []
    for name,store in STORES.items():
        if not store.can >= {*needs}: continue
        for o in store.drivers if drivers else store.drivers[:1]:
            driver,marks = (o.values[0],o.marks) if hasattr(o, 'values') else (o,())
            found.append(pytest.param((name, driver if drivers else None), id=driver if drivers and driver else name, marks=(*store.marks, *marks)))
    return found
