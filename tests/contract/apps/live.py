"""Live elements over the rows of an SQLite file, `DB`, for several processes; `BACKEND` connects them: that file, or a Redis

`CHANGED` changes what one drawing function gives. Rows have no ids in the page, and each drawing takes a moment between what it reads and what it gives.
"""
import asyncio
import os
import sqlite3
import time
from contextlib import closing
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse

env = os.environ.get
sse = SSEBroadcastManager(backend=env('BACKEND'), retry=50)
app, rt = fast_app(secret_key='test', default_hdrs=False)
setup_sse(app, sse, multiplex=env('MULTIPLEX', 'yes')=='yes')
drawn = dict(plain=0, later=0, total=0, kind=0)

def opened():
    db = sqlite3.connect(env('DB'), timeout=20)
    db.execute('pragma synchronous=off')
    return closing(db)

def prepare(tries=200):
    "Make the table; SQLite does not wait for a lock where a file changes to WAL"
    try:
        with opened() as db: db.executescript(
            'pragma journal_mode=wal; create table if not exists item(id integer primary key autoincrement, text text)')
    except sqlite3.OperationalError:
        if not tries: raise
        time.sleep(.05)  # Another worker has the lock
        prepare(tries-1)

prepare()

def rows():
    with opened() as db: return db.execute('select id, text from item order by id').fetchall()

def write(sql, *values):
    with opened() as db, db: db.execute(sql, values)

def listed(shown): return Ul(*[Li(f'{id} {text}') for id,text in shown])

@sse.live('item:*')
def plain():
    drawn['plain'] += 1
    shown = rows()
    time.sleep(.002)  # Drawing takes so long
    return listed(shown)

@sse.live('item:*')
async def later():
    drawn['later'] += 1
    shown = rows()
    await asyncio.sleep(.002)  # Drawing takes so long
    return listed(shown)

@sse.live('item:*')
def total():
    drawn['total'] += 1
    shown = rows()
    return Table(Tbody(Tr(Td(len(shown)), Td(sum(len(text) for _,text in shown)))))

@sse.live('kind')
def kind():
    drawn['kind'] += 1
    return P(env('CHANGED', 'as ever'))

@sse.live('mail:{user}')
def inbox(user): return P(user)

@sse.live('sse:presence')
async def people(): return P(' '.join(sorted((await sse.cluster_stats())['users'])))

def page(*shown): return Titled(f'Process {os.getpid()}', *shown, kind())

@rt('/')
def index(): return page(plain(), later.now(), total())

@rt('/later')
async def index_later(): return page(plain(), await later(), total())

@rt('/fresh')
async def index_fresh(): return page(await plain.fresh(), await later(), await total.fresh())

@rt('/inbox')
def mine(session): return page(inbox(session['auth']), people.now())

@rt
def login(session, name: str): session['auth'] = name

@rt
async def log_out(name: str): return str(await sse.disconnect(name))

@rt
def add(text: str):
    write('insert into item(text) values(?)', text)
    sse.changed('item:added')

@rt
async def add_later(text: str):
    await asyncio.to_thread(write, 'insert into item(text) values(?)', text)
    await sse.changed('item:added')

@rt
def edit(text: str):
    write('update item set text=? where id=(select id from item order by random() limit 1)', text)
    sse.changed('item:changed')

@rt
def drop():
    write('delete from item where id=(select id from item order by random() limit 1)')
    sse.changed('item:dropped')

@rt
def nothing(): sse.changed('kind')

@rt
def here(): return JSONResponse(dict(pid=os.getpid(), drawn=drawn, connections=sse.connection_count))

@rt
def state(): return JSONResponse(rows())
