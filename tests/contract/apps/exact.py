"""An app whose state and messages are in one place, `URL`: items, each with a version that counts its changes

With `FASTLITE` that is an SQLite file, and the app opens it by fastlite, too, and writes into it.
"""
import asyncio
import os
import threading
import time
from fasthtml.common import *
from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

if os.environ.get('FASTLITE'):
    from fastlite import database
    own = database(os.environ['URL'].removeprefix('sqlite:///'))
    own.conn.set_busy_timeout(20_000)

app, rt = fast_app(secret_key='test')
sse = SSEBroadcastManager(backend=os.environ['URL'], replay_size=100_000, max_queue_size=10_000)
setup_sse(app, sse)

def versions(db): return ' '.join(f'{id}:{version}' for id,version in db.execute('select id, version from item').fetchall())

def drawn(db): return Div(versions(db), id='state'), HTMXSSEConnector.create_sse_element(endpoint=events)

@rt
def page():
    "What the process has heard of when the page is drawn is only noted: the stream goes on where the transaction stands"
    with sse.reading() as db:
        time.sleep(.002)  # Drawing takes so long
        return *drawn(db), Div(sse.cursor, id='heard')

@rt
async def page_on_the_loop():
    async with sse.reading() as db:
        await asyncio.sleep(.002)  # Drawing takes so long
        return *drawn(db), Div(sse.cursor, id='heard')

def state(db):
    time.sleep(.002)  # Drawing takes so long
    return Div(versions(db), id='state')

@rt
def events(req): return sse.stream(req)

@rt
def events_with_state(req): return sse.stream(req, snapshot=state)

@rt
def begin():
    "A thread of the server writes, too"
    threading.Thread(target=write_here, daemon=True).start()
    return str(os.getpid())

def write_here():
    for n in range(150):
        if os.environ.get('FASTLITE'): own.t.visit.insert(at=time.time())
        with sse.transaction() as db:
            (version,), = db.execute('update item set version=version+1 where id=20 returning version').fetchall()
            sse.broadcast('item', [20, version])
        time.sleep(.02)  # Others have a turn, too
