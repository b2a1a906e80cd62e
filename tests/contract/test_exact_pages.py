"""State and messages in one place: a page's state and the messages that follow are exactly the state in the end

Items have versions. Whoever changes an item says so in the same transaction: two processes that are killed in the middle of it
again and again, and a thread of the server; a fifth of the transactions is rolled back. Two workers serve pages meanwhile. Each
page is drawn in a read transaction, slowly, and its stream goes on from there, at whichever worker; or the state comes on the
stream, by a snapshot that takes `db`. What then comes of an item has to be the next version, each time, up to the last one.
"""
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest

from tests.contract.servers import APPS, NO_TLS, running, uvicorn
from tests.contract.support import BOUND, GAP, eventually, within
from tests.contract.stores import in_thread

KILLS, BETWEEN = 20, 40  # Writers that are killed, and messages from one to the next
PAGES, APART = 100, 3    # Pages at least, and those that stand elsewhere than their process
EVERY = 8                # One page of so many follows from the beginning, all others go on at the end
EVENT = re.compile(rb'event: (\S+)\nid: (\S+)\ndata: (.*)\n')


class Writers:
    "Two processes that write; `with`"
    def __init__(self, store): self.address, self.pids, self.kills = store.address, [], 0

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, 'writers.py', self.address], cwd=APPS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2): self.start()
        return self

    def start(self):
        print(random.random(), file=self.process.stdin, flush=True)
        self.pids.append(int(self.process.stdout.readline()))

    def kill(self):
        os.kill(self.pids.pop(random.randrange(len(self.pids))), signal.SIGKILL)
        self.kills += 1

    def __exit__(self, *exc):
        while self.pids: self.kill()
        self.process.stdin.close()
        self.process.wait(BOUND)
        self.process.stdout.close()


def versions(text): return {int(id): int(version) for id,version in re.findall(r'(\d+):(\d+)', text)}

def seq(id): return int(id.rpartition('-')[2])


async def follow(port, path, after=''):
    "What a stream brings, as (event, id, data), up to the end"
    reader,writer = await asyncio.open_connection('127.0.0.1', port)
    try:
        writer.write(f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{after and "SSE-After: "}{after}\r\n\r\n'.lstrip().encode())
        head,body = await reader.readuntil(b'\r\n\r\n'),b''
        assert b' 200 ' in head, head
        while b'event: end\n' not in body[-1000:]: body += (await reader.readexactly(int(await reader.readline(), 16)+2))[:-2]
        return [tuple(o.decode() for o in found) for found in EVENT.findall(body)], body.decode()
    finally: writer.close()


class Run:
    "A server of two workers, what they are asked, and what is found"
    def __init__(self, port, shell):
        self.port, self.shell, self.pages, self.tasks, self.done = port, shell, [], [], asyncio.Event()

    def sql(self, text): return in_thread(self.shell.sql, text)

    async def get(self, path):
        async with httpx.AsyncClient(base_url=f'http://127.0.0.1:{self.port}', timeout=BOUND, verify=NO_TLS) as web:  # Any worker
            return (await web.get(path)).raise_for_status().text

    async def visit(self, path):
        "Load pages, one behind the other"
        while not self.done.is_set():
            text = await self.get(path)
            page = SimpleNamespace(after=re.search('data-sse-cursor="(.*?)"', text)[1], stream=None,
                                   state=versions(re.search('<div id="state">(.*?)</div>', text)[1]), heard=re.search('<div id="heard">(.*?)</div>', text)[1])
            self.pages.append(page)
            if len(self.pages)%EVERY==0: page.stream = asyncio.create_task(follow(self.port, '/events', page.after))

    async def visit_stream(self):
        "Open streams that bring their state"
        while not self.done.is_set():
            page = SimpleNamespace(after=None, heard=None, stream=asyncio.create_task(follow(self.port, '/events_with_state')))
            self.pages.append(page)
            await asyncio.sleep(.1)  # Between two streams

    def apart(self):
        "How many pages stand elsewhere than their process did, when they were drawn"
        return sum(seq(page.after)!=seq(page.heard) for page in self.pages if page.heard)

    async def changes(self): return (await self.sql('select sum(version) from item'))[0][0]  # As many as there are messages

    async def kill_writers(self, writers):
        while writers.kills<KILLS or len(self.pages)<PAGES or self.apart()<APART:  # A machine with slow pages, or a fast file, takes some more
            start = await self.changes()
            async def enough(): return await self.changes()>=start+BETWEEN
            await eventually(enough, 'they write on')
            writers.kill()
            await in_thread(writers.start)

    async def go_on(self):
        "Have all pages follow that did not so far"
        room = asyncio.Semaphore(20)
        async def later(page):
            async with room: return await follow(self.port, '/events', page.after)
        for page in self.pages: page.stream = page.stream or asyncio.create_task(later(page))
        await asyncio.gather(*[page.stream for page in self.pages])

    def wrong(self, final):
        "What each wrong page lacks, or has twice"
        for page in self.pages:
            events,body = page.stream.result()
            if page.after is None: page.state = versions(re.search('<div id="state">(.*?)</div>', body)[1])
            state = {**page.state}
            assert GAP not in body
            for name,_,data in events:
                if name!='item': continue
                id,version = map(int, data.strip('[]').split(','))
                if version!=state[id]+1: yield f'item {id}: {version} behind {state[id]}'
                state[id] = version
            if state!=final: yield f'{state} in the end'


@pytest.mark.needs('transaction', 'reading')
async def test_state_and_messages(store, tmp_path):
    "Hundreds of pages at two workers, while writers are killed: nothing lost, nothing twice"
    with store.shell() as shell:
        for text in 'create table item(id integer primary key, version integer not null)', 'create table visit(id integer primary key, at real)':
            shell.sql(text)
        for n in range(21): shell.sql(f'insert into item values({n}, 0)')
        with running(uvicorn('exact:app', '--workers', '2'), tmp_path/'log', env=store.env) as app, Writers(store) as writers:
            run = Run(app.port, shell)
            async with within('all pages hear the end', 5*BOUND):
                await run.get('/begin')
                async with asyncio.TaskGroup() as tasks:
                    for address in '/page', '/page', '/page_on_the_loop': tasks.create_task(run.visit(address))
                    tasks.create_task(run.visit_stream())
                    await run.kill_writers(writers)
                    run.done.set()
                while writers.pids: writers.kill()
                async def through(): return await run.sql('select version from item where id=20')==[[150]]
                await eventually(through, 'the thread of the server is through')
                await in_thread(shell.say, 'end')
                await run.go_on()
            final = dict(map(tuple, shell.sql('select id, version from item')))
            assert [*run.wrong(final)] == []
            figures = dict(pages=len(run.pages), live=sum(o.after is None for o in run.pages), apart=run.apart(),
                           messages=sum(final.values()), kills=writers.kills)
            print(figures)
            assert sum(final.values())>=KILLS*BETWEEN/2, figures
            assert 'Traceback' not in app.output
