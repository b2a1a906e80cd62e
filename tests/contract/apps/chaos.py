"""The app of the chaos run: `URL` names what its workers share, `LOG` says how many messages each keeps

With `LIBRARY`, `sqlite3` or `fastlite`, that is an SQLite file, and the app has it open, too. Whoever sends a message in a
transaction writes a row about it there.
"""
import asyncio
import os
import sqlite3
import threading
import time
from fasthtml.common import *
from starlette.responses import PlainTextResponse
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

app, rt = fast_app(secret_key='test')
manager = SSEBroadcastManager(replay_size=int(os.environ['LOG']), heartbeat=2., retry=300, backend=os.environ['URL'])
setup_sse(app, manager)
path, writing = os.environ['URL'].removeprefix('sqlite:///'), threading.Lock()  # Threads share one connection

class RolledBack(Exception): pass

@rt
def events(req): return manager.stream(req)

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), cursor=manager.cursor))

def message(n): return dict(n=n, text='x'*150)

if os.environ['LIBRARY'] == 'fastlite':
    from apsw import BusyError
    from fastlite import database
    while True:
        try: db = database(path)
        except BusyError: time.sleep(.05)  # fastlite waits a tenth of a second for a file that somebody else has locked
        else: break
    db.conn.set_busy_timeout(20_000)       # And so would each statement
    def insert(db, n): db.t.row.insert(n=n)
elif os.environ['LIBRARY'] == 'sqlite3':
    db = sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
    def insert(db, n): db.execute('insert into row(n) values(?)', (n,))

if os.environ['LIBRARY'] != 'redis': db.execute('create table if not exists row(n integer primary key)')

def answered(f, n):
    try: f(n)
    except RolledBack: return PlainTextResponse('rolled back', 409)
    except Exception as e: return PlainTextResponse(repr(e), 503)
    return PlainTextResponse('ok')

async def answered_later(f, n):
    try: await f(n)
    except RolledBack: return PlainTextResponse('rolled back', 409)
    except Exception as e: return PlainTextResponse(repr(e), 503)
    return PlainTextResponse('ok')

@rt
async def say(n: int):
    async def send(n): await manager.broadcast('n', message(n))
    return await answered_later(send, n)

@rt
async def say_in_block(n: int):
    async def send(n):
        async with manager.transaction() as db:
            insert(db, n)
            sent = manager.broadcast('n', message(n))
        await sent
    return await answered_later(send, n)

@rt
def say_in_thread(n: int):
    def send(n):
        with manager.transaction() as db:
            insert(db, n)
            manager.broadcast('n', message(n))
    return answered(send, n)

@rt
async def take_back(n: int):
    "In both ways, by turns"
    def in_thread():
        with manager.transaction() as db:
            insert(db, n)
            manager.broadcast('n', message(n))
            raise RolledBack
    async def send(n):
        if n%20 < 10: return await asyncio.to_thread(in_thread)
        async with manager.transaction() as db:
            insert(db, n)
            manager.broadcast('n', message(n))
            raise RolledBack
    return await answered_later(send, n)

@rt
def say_in(n: int):
    "With the connection of the app"
    def send(n):
        with writing:
            db.execute('begin immediate')
            try:
                insert(db, n)
                manager.broadcast_in(db, 'n', message(n))
                db.execute('commit')
            except BaseException:
                db.execute('rollback')
                raise
    return answered(send, n)
