"""Live elements that show rows of a table: drawn again after each commit that changes such a row, whoever makes it

Over each store that can `watch`. Who writes is a shell, another process that knows nothing of the library. Two managers are two
workers, each with its app.
"""
import random
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date
from uuid import UUID

import pytest
from fasthtml.common import Client, Div, FastHTML, P

from cjm_fasthtml_sse.core import BackendError, SSEBroadcastManager
from cjm_fasthtml_sse.helpers import setup_sse
from cjm_fasthtml_sse.testing import SSEClient
from tests.contract.support import BOUND, eventually, following
from tests.contract.stores import in_thread
from tests.contract.test_watched_tables import LIMIT

pytestmark = pytest.mark.needs('watch', 'reading')

TODO = "create table todo(id integer primary key, user, title)", "insert into todo(user, title) values('ann', 'tea'), ('bob', 'milk'), ('carl', 'rice')"


class Worker:
    "An app with a live element: the titles of one user, among all whom it knows"
    def __init__(self, sse, users=('ann', 'bob', 'carl'), equals='user is ?', **kw):
        self.sse, self.users, self.app, self.drawn = sse, users, FastHTML(secret_key='contract'), []
        setup_sse(self.app, sse)
        @sse.live(**dict(dict(table='todo', where=['user']), **kw))
        def mine(user):
            self.drawn.append(user)
            return P(self.text(user))
        self.mine = mine
        @self.app.route
        def page(n: int): return Div(mine(users[n]))
        self.page, self.equals = page, equals

    def text(self, user):
        with self.sse.reading() as db:
            return said([o for o, in db.execute(f'select title from todo where {self.equals} order by id', (user,)).fetchall()])

    def tab(self, user): return SSEClient(self.app, self.page.to(n=self.users.index(user)))


def said(titles): return f'has {" ".join(map(str, titles))} end'


@asynccontextmanager
async def workers(store, n=2, sql=TODO, **kw):
    with store.shell() as shell:
        for o in sql: shell.sql(o)
        async with store.workers(n) as ms:
            found = [Worker(m, **kw) for m in ms]
            for m in ms: await m.open()
            yield shell, found


@asynccontextmanager
async def tabs(ws, users=('ann', 'bob', 'carl')):
    "One of each user in each worker; all show what they have, and nothing is under way"
    async with AsyncExitStack() as stack:
        res = [(w, o, await stack.enter_async_context(w.tab(o))) for w in ws for o in users]
        for w, o, tab in res: await tab.live(w.mine, shows=await in_thread(w.text, o), timeout=BOUND)
        for w in ws: w.drawn.clear()
        yield res


async def all_show(found, **titles):
    "Each tab of a user shows these titles"
    for w, user, tab in found:
        if user in titles: await tab.live(w.mine, shows=said(titles[user].split()), timeout=BOUND)


class TestRows:
    async def test_a_row_that_moves(self, store):
        "The view that it leaves and the one that it enters are drawn, in both workers, and no others"
        async with workers(store) as (shell, ws), tabs(ws) as found:
            shell.sql("update todo set user='bob' where title='tea'")
            await all_show(found, ann='', bob='tea milk')
            shell.sql("update todo set title='green' where title='tea'")
            await all_show(found, bob='green milk')
            shell.sql('delete from todo where id=2')
            shell.sql("insert into todo(user, title) values('bob', 'oats')")
            await all_show(found, bob='green oats')
            assert [{*w.drawn} for w in ws] == [{'ann', 'bob'}]*2

    async def test_a_row_that_is_replaced(self, store):
        "By one with its key, by one with its unique title, and by one whose key changes"
        sql = 'create table todo(id integer primary key, user, title unique on conflict replace)', TODO[1]
        async with workers(store, sql=sql) as (shell, ws), tabs(ws) as found:
            shell.sql("insert or replace into todo values(1, 'bob', 'tea')")
            await all_show(found, ann='', bob='tea milk')
            shell.sql("insert into todo values(7, 'bob', 'rice')")
            await all_show(found, bob='tea milk rice', carl='')
            shell.sql("insert or replace into todo values(8, 'ann', 'oats'), (9, 'carl', 'soy')")
            await all_show(found, ann='oats', carl='soy')
            shell.sql('update or replace todo set id=8 where id=9')
            await all_show(found, ann='', carl='soy')

    async def test_what_is_rolled_back(self, store):
        "Nothing is drawn"
        async with workers(store) as (shell, ws), tabs(ws) as found:
            for sql in 'begin', "update todo set user='bob', title='x'", 'rollback', "insert into todo(user, title) values('carl', 'last')": shell.sql(sql)
            await all_show(found, carl='rice last')
            assert [{*w.drawn} for w in ws] == [{'carl'}]*2

    async def test_a_large_transaction(self, store):
        async with workers(store) as (shell, ws), tabs(ws) as found:
            shell.sql(f"insert into todo(user, title) select case when value<{2*LIMIT} then 'bob' else 'ann' end, value from json_each('{[*range(2*LIMIT+1)]}')")
            await all_show(found, ann=f'tea {2*LIMIT}', bob=' '.join(['milk', *map(str, range(2*LIMIT))]))

    async def test_a_page_shows_what_was_committed(self, store):
        "At once, though its event has not come, and other pages were drawn just before"
        async with workers(store) as (shell, ws):
            clients = [Client(w.app) for w in ws]
            def show(n):
                for w, c in zip(ws, clients): assert f'has {n} end' in c.get(w.page.to(n=0)).text
            for n in range(30):
                shell.sql(f"update todo set title={n} where user='ann'")
                await in_thread(show, n)

    async def test_the_table_is_made_anew(self, store):
        "As a change of its columns has it done"
        async with workers(store) as (shell, ws), tabs(ws) as found:
            for sql in 'begin', 'create table other as select * from todo', "update other set title='soy'", 'drop table todo', 'alter table other rename to todo', 'commit': shell.sql(sql)
            await all_show(found, ann='soy', bob='soy', carl='soy')
            shell.sql("update todo set title='oats' where user='ann'")
            await all_show(found, ann='oats')


class TestValues:
    USERS = 1, '1', True, 0, None, '', 'Ann', 'ann', 'ann ', '01', '1.0', 'nan', 2**53+1, UUID(int=10), date(2026, 1, 31)
    VALUES = [*("null 0 1 2 1.0 '1' '01' '1.0' '' 'Ann' 'ann' 'ann ' 'nan' 9007199254740993 9007199254740992.0 '2026-01-31'".split()), f"'{UUID(int=10)}'", "x'31'"]

    @pytest.mark.parametrize('kind', ['', 'integer', 'text', 'real', 'text collate nocase', 'text collate rtrim', 'boolean', 'blob'])
    async def test_whatever_sqlite_compares(self, store, kind):
        "Random statements, in columns of all types: after each commit, each view is what the query finds"
        rng = random.Random(kind)
        users = [*self.USERS]
        def value(): return rng.choice([*self.VALUES, *(["'ann '"] if kind else [])])
        def statement(n):
            return rng.choice([f"insert into todo(user, title) values({value()}, {n})"]*2+[f'update todo set user={value()} where id%3={n%3}', f'update todo set title={n}',
                f'delete from todo where user is {value()}', f'insert or replace into todo values({rng.randrange(5)}, {value()}, {n})'])
        sql = f'create table todo(id integer primary key, user {kind}, title)',
        def plain(user): return str(user) if isinstance(user, UUID|date) else user
        async with workers(store, n=1, sql=sql, users=users) as (shell, (w,)):
            text = w.text
            w.text = lambda user: text(plain(user))
            async with AsyncExitStack() as stack:
                found = [(w, o, await stack.enter_async_context(SSEClient(w.app, w.page.to(n=n)))) for n, o in enumerate(users)]
                for n in range(25):
                    for sql in rng.choice([['begin', statement(n), statement(n+1), rng.choice(['commit', 'commit', 'rollback'])], [statement(n)]]): shell.sql(sql)
                    for _, user, tab in found: await tab.live(w.mine, shows=await in_thread(w.text, user), timeout=BOUND)

    async def test_several_workers_and_programs(self, store):
        "Random statements of two shells and of the app, at the same time: in the end each view is what the query finds"
        rng = random.Random(7)
        names = 'ann', 'bob', 'carl'
        def statement(n):
            a, b = (rng.choice(names) for _ in 'ab')
            return rng.choice([f"insert into todo(user, title) values('{a}', {n})"]*3+[f"update todo set user='{a}' where user='{b}'", f"update todo set title={n} where id%5={n%5}",
                f'delete from todo where id%4={n%4}', f"insert or replace into todo values({rng.randrange(9)}, '{a}', {n})"])
        async with workers(store) as (shell, ws), tabs(ws) as found:
            with store.shell() as other:
                for n in range(60):
                    if n%3 == 2:
                        async with rng.choice(ws).sse.transaction() as db: db.execute(statement(n))
                    else: await in_thread(rng.choice([shell, other]).sql, statement(n))
                    if n%20 == 19:
                        for w, user, tab in found: await tab.live(w.mine, shows=await in_thread(w.text, user), timeout=BOUND)


class TestOptions:
    async def test_patterns_and_other_names(self, store):
        "Events of the app count as well; a parameter may have another name than its column, or none"
        async with workers(store, where=dict(user='owner'), patterns='user:{user}', equals='owner is ?',
                           sql=[o.replace('user', 'owner') for o in TODO]) as (shell, ws), tabs(ws) as found:
            shell.sql("update todo set title='green' where owner='ann'")
            await all_show(found, ann='green')
            for w in ws: w.drawn.clear()
            await ws[0].sse.changed('user:carl')
            for w in ws: await eventually(lambda w=w: w.drawn, 'it is drawn')
            assert [{*w.drawn} for w in ws] == [{'carl'}]*2

    async def test_all_rows_of_several_tables(self, store):
        async with workers(store, n=1, table=['todo', 'tag'], where=[], sql=[*TODO, 'create table tag(name)'],
                           equals="title<>coalesce((select name from tag), '') and ? is not null") as (shell, (w,)), tabs([w]) as found:
            shell.sql("delete from todo where user='bob'")
            await all_show(found, ann='tea rice', carl='tea rice')
            shell.sql("insert into tag values('rice')")
            await all_show(found, ann='tea', carl='tea')

    async def test_two_queries_on_one_table(self, store):
        "Each with columns of its own"
        async with workers(store, n=1) as (shell, (w,)):
            @w.sse.live(table='todo', where=['title'])
            def owners(title):
                with w.sse.reading() as c: return P(said([o for o, in c.execute('select user from todo where title=?', (title,)).fetchall()]))
            @w.app.route
            def other(): return Div(owners('tea'))
            async with tabs([w]) as found, SSEClient(w.app, other) as tab:
                await tab.live(owners, shows=said(['ann']), timeout=BOUND)
                shell.sql("update todo set title='tea' where user='bob'")
                await all_show(found, bob='tea')
                await tab.live(owners, shows=said(['ann', 'bob']), timeout=BOUND)

    async def test_a_stream_beside_it(self, store, caplog):
        "No hint says that it should name the table: a live element is made of its events"
        async with workers(store, n=1) as (shell, (w,)), tabs([w]) as found, following('stream', w.sse) as c:
            shell.sql("update todo set title='x' where user='ann'")
            await all_show(found, ann='x')
            assert not [o for o in caplog.records if o.name.endswith('hints')] and c.seen == []

    async def test_the_table_is_made_at_the_start(self, store):
        "A page before that says what is missing"
        async with workers(store, sql=['select 1']) as (shell, ws):
            with pytest.raises(ValueError, match="no table 'todo'"): await in_thread(ws[0].mine, 'ann')
            for sql in TODO: shell.sql(sql)
            async with tabs(ws) as found:
                shell.sql("update todo set user='bob' where title='tea'")
                await all_show(found, ann='', bob='tea milk')

    async def test_a_connection_of_the_app(self, store):
        "The tables are watched now, and it can still write"
        async with workers(store, n=1) as (shell, (w,)):
            db = store.connect()
            @w.sse.live(table='todo', db=db, where=['title'])
            def owners(title): return P()
            assert [o for o in shell.sql("select sql from sqlite_master where type='trigger'") if 'title' in o[0]]
            db.execute("insert into todo(user, title) values('ann', 'x')")
            db.close()

    @pytest.mark.parametrize('public', [False, True])
    async def test_who_else_gets_the_events(self, store, public):
        "What `watch` has said holds; unless it was called, they are private"
        async with workers(store, n=1) as (shell, (w,)):
            db = store.connect()
            if public:
                w.sse.watch(db, 'todo', private=False)
            db.close()
            await in_thread(w.mine, 'ann')
            async with following('stream', w.sse) as c:
                shell.sql("update todo set title='x' where user='ann'")
                await eventually(lambda: [o for o in w.sse.get_history(private=True) if o['type'] == 'table:todo' and o['data'].get('new')], 'it is delivered')
                await w.sse.broadcast('end', 0)
                while (await c.next())[0] != 'end': pass
                assert ('table:todo' in [o for o, _ in c.seen]) == public

    async def test_what_is_refused(self, store):
        async with workers(store, n=1) as (shell, (w,)):
            db, sse = store.connect(), w.sse
            def draw(user, other=None): return P()
            def nobodys(): return P()
            for error, match, kw in ((ValueError, "Did you mean 'user'", dict(table='todo', db=db, where=['usr'])), (ValueError, 'no parameters', dict(table='todo', db=db, where=['x'])),
                    (ValueError, "no column 'other'", dict(table='todo', db=db, where=['other'])), (ValueError, "no table 'nothing'", dict(table='nothing', db=db)),
                    (ValueError, "Did you mean 'title'", dict(table='todo', db=db, where=dict(user='titel'))), (ValueError, 'list of names', dict(table='todo', db=db, where='user')),
                    (ValueError, 'list of names', dict(table=7, db=db)), (ValueError, 'alone', dict(patterns='x', where=['user'])),
                    (TypeError, 'pattern', {}), (TypeError, "got 'app.db'", dict(table='todo', db='app.db'))):
                with pytest.raises(error, match=match): sse.live(**kw)(nobodys if 'no parameters' in match else draw)
            with pytest.raises(BackendError, match=r'`live\(table=...\)` needs a backend in an SQLite file'): SSEBroadcastManager().live(table='todo', db=db)
            db.close()
