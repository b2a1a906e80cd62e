"""A job board: each job computes the SHA-256 of every file in a folder, and every open tab shows how far it is

    python demo/main.py                          the installed Python packages, at http://127.0.0.1:5001
    python demo/main.py --root /srv --port 8000  folders in /srv
    python demo/main.py --db board.db            two workers, whose jobs and messages are in one SQLite file
    python demo/main.py --htmx4                  the same page with htmx 4
"""
import argparse,ipaddress,json,logging,os,secrets,socket,sysconfig,tempfile,threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict,replace
from pathlib import Path
from time import monotonic,time
from urllib.parse import urlsplit

import uvicorn
from fasthtml.common import *
from cjm_fasthtml_sse.common import *
from hashing import Report,folder_in,hash_folder,shown
from scripts import ICON,htmx

parser = argparse.ArgumentParser(description='A job board: the same in every tab')
parser.add_argument('--root', default=sysconfig.get_path('purelib'),
    help='nothing outside this folder is read (default: %(default)s)')
parser.add_argument('--rate', type=float, default=25,
    help='megabytes that a job reads in a second, 0: no limit (default: %(default)s)')
parser.add_argument('--host', default='127.0.0.1', help='default: %(default)s')
parser.add_argument('--port', type=int, help='default: 5001, or the next one that is free')
parser.add_argument('--db',
    help='the SQLite file of jobs and messages, which outlives the server (default: one that goes with it)')
parser.add_argument('--workers', type=int, help='processes that serve the page (default: 2 with --db)')
parser.add_argument('--htmx4', action='store_true', help='load htmx 4 instead of htmx 2; nothing else differs')
args = parser.parse_args()
root,rate,here = Path(args.root).resolve(),args.rate*1e6 or float('inf'),Path(__file__).resolve().parent
if not root.is_dir(): parser.error(f'there is no folder {root}')
workers = args.workers or (2 if args.db else 1)
if workers>1 and not args.db: parser.error('several workers share a file: --db board.db')
folder = None if args.db else tempfile.TemporaryDirectory()
file = Path(args.db or f'{folder.name}/board.db').resolve()
log = logging.getLogger('job board')
AT_ONCE,WAITING,KEPT = 8,16,100  # Jobs that run, that wait at most, and that are kept after their end
LEASE = 3  # Seconds after which a job is taken by another worker, unless its own says that it is there

# --- Requests that are refused
class Guard:
    "Refuse requests of other sites: to a host name that is not this server's, and forms sent by their pages"
    def __init__(self, app): self.app = app

    async def __call__(self, scope, receive, send):
        if scope['type']=='http' and (why := self.refusal(Request(scope))):
            return await Response(why, 403)(scope, receive, send)
        await self.app(scope, receive, send)

    def refusal(self, req):
        host,origin = req.headers.get('host', ''),req.headers.get('origin')
        if not is_ours(host): return 'Nothing is served under this name'
        if req.method in ('GET', 'HEAD'): return ''
        same = req.headers.get('sec-fetch-site', 'same-origin')=='same-origin'
        if not same or origin and origin.partition('://')[2]!=host: return 'Another site sent this'

def is_ours(host):
    "Check that `host` is a name of this server, or an IP address, which can't be the name of another site"
    with suppress(ValueError):
        name = urlsplit(f'//{host}').hostname or ''
        return name in {'localhost', args.host, socket.gethostname()} or bool(ipaddress.ip_address(name))

# --- The app
sse = SSEBroadcastManager(backend=file, retry=1000)
pool,closing = ThreadPoolExecutor(AT_ONCE),threading.Event()

async def begin():
    async with sse.transaction() as db: db.execute("create table if not exists job(n integer primary key, id unique, "
        "first, report, state as (json_extract(report, '$.state')), worker, seen)")  # Both reports are JSON
    threading.Thread(target=take_up, daemon=True).start()
    if workers>1: print(f'Worker {os.getpid()} serves', flush=True)  # Also one that takes the place of another

def stop():
    "Stop the threads; each ends after the block that it reads, and its job is taken up when a worker is there"
    closing.set()
    work.set()
    pool.shutdown(wait=False, cancel_futures=True)

scripts,routes = htmx(4 if args.htmx4 else 2)
viewport = Meta(name='viewport', content='width=device-width, initial-scale=1')
style = Style((here/'style.css').read_text(encoding='utf-8'))
app = FastHTML(default_hdrs=False, routes=routes, key_fname=f'{file}.key', on_startup=[begin], on_shutdown=[stop],
    htmlkw=dict(lang='en'), middleware=[Middleware(Guard)],
    hdrs=(Meta(charset='utf-8'), viewport, Link(rel='icon', href=ICON), style, *scripts))
setup_sse(app, sse)

# --- The state: rows of the file. They change together with the events that have the pages drawn anew
OVER = "state in ('finished', 'cancelled', 'failed')"
SAID = dict(added='waits', begun='started', left='begins again: its worker has ended', ended='')

def change(what, sql, *params):
    "Change jobs, and tell that `what` has happened to them, or do neither. Return the jobs that have changed"
    with sse.transaction() as db:
        jobs = reports(db, f'{sql} returning report', *params)
        for o in jobs: sse.broadcast(f'job:{o.id}:{what}', f'{o.name} {SAID.get(what) or o.state}')
    return jobs

def reports(db, sql='select report from job order by n desc', *params):
    return [Report(**json.loads(o)) for o, in db.execute(sql, params).fetchall()]

# --- A job, in a thread of whichever worker takes it
me,mine,work = secrets.token_hex(8),{},threading.Event()  # `mine`: job id -> what its thread will return

STAY = 'update job set seen=? where worker=? and id in (select value from json_each(?))'
BEGIN = """update job set report=json_set(report, '$.state', 'running'), worker=?, seen=?
    where n=(select min(n) from job where state='waiting') and (select count(*) from job where state='running')<?"""

@sse.on_delivery
def look(message):  # Something has changed, in this worker or in another one
    if message['type'].startswith('job:') and not message['type'].endswith(':progress'): work.set()

def take_up():
    "Take the jobs that wait, and those whose worker was killed, as nobody says any more that they are under way"
    while not closing.is_set():
        for id in [id for id,o in mine.items() if o.done()]: del mine[id]
        try:
            with sse.transaction() as db: db.execute(STAY, (time(), me, json.dumps([*mine])))
            change('left', "update job set report=first where state='running' and seen<?", time()-LEASE)
            while jobs := change('begun', BEGIN, me, time(), AT_ONCE): mine[jobs[0].id] = pool.submit(run, jobs[0])
        except BackendError as e: log.warning('%s', e)  # Such as a file that another program has locked
        work.wait(1)
        work.clear()

def run(job):
    began,sent = monotonic(),0.
    def save(what):  # It changes nothing where the job was cancelled, or is another worker's by now
        return change(what, "update job set report=? where id=? and worker=? and state='running'",
            json.dumps(asdict(job)), job.id, me)
    try:
        for job in hash_folder(job, root):
            if closing.wait(max(0, job.bytes/rate - (monotonic()-began))): return  # Leaves the disk to others, too
            job = replace(job, seconds=monotonic()-began)
            if job.state=='running' and job.seconds-sent > .15:
                sent = job.seconds
                if not save('progress'): return
    except BackendError as e: return log.warning('%s', e)  # The job is taken up again
    except Exception as e:
        job = replace(job, state='failed', text=f'Nothing could be read: {getattr(e, "strerror", None) or repr(e)}')
    save('ended')

# --- The elements
@sse.live('job:**', throttle=.1)
def board():
    with sse.reading() as db: return Ul(*map(row, reports(db)), id='jobs')

@sse.live('job:**', throttle=.1)
def totals():
    with sse.reading() as db: jobs = reports(db)
    now = [o for o in jobs if o.state=='running']
    values = {'Running': f'{len(now):,}', 'Files per second': f'{sum(o.speed for o in now):,.0f}',
        'Files read': f'{sum(o.files for o in jobs):,}', 'Data read': size(sum(o.bytes for o in jobs))}
    return Dl(*[Div(Dt(k), Dd(v)) for k,v in values.items()], id='totals')

@sse.live('sse:presence')
def looking(): return Span(f'{len(sse.online):,}', id='tabs')

def say(message): return oob_update('news', message['data'])  # To be read out once, so it is a message
def size(n): return f'{n/1e9:,.2f} GB' if n>=1e9 else f'{n/1e6:,.1f} MB' if n>=1e5 else f'{n:,} bytes'
def of(a, b): return a if a==b else f'{a} of {b}'

def row(job):
    name,route = ('Cancel',cancel) if job.state in ('waiting', 'running') else ('Clear',clear)
    return Li(Div(H3(job.name), Span(job.state.title(), cls='chip'),
        Button(name, id=f'act-{job.id}', hx_post=route.to(id=job.id), hx_swap='none', aria_label=f'{name} {job.name}'),
        cls='head'), progress(job), unread(job), id=f'job-{job.id}', cls=job.state)

def progress(job):  # What moves
    looking,files = job.state=='running' and not job.size,of(f'{job.files:,}', f'{job.found:,}')
    return Div(Progress(id=f'bar-{job.id}', max=1, value=None if looking else f'{job.done:.4f}'),
        Div(Label(f'{job.found:,} files found' if looking else f'{files} files', fr=f'bar-{job.id}'),
            Span(of(size(job.bytes), size(job.size))), Span(f'{job.speed:,.0f} files/s'),
            Span(f'{job.seconds:,.1f} s'),
            Span(f'{job.unread:,} unread', cls='unread') if job.unread else None, cls='figures'),
        Code(job.text) if job.state in ('running', 'finished') else P(job.text))

def unread(job):
    if job.state=='running' or not job.unread: return None
    lines,more = [Li(Code(name), f' {reason}') for name,reason in job.reasons],job.unread-len(job.reasons)
    return Details(Summary('What could not be read'), Ul(*lines, Li(f'and {more:,} more') if more else None))

# --- The routes
@app.get
def events(req, tab: str = ''):
    return sse.stream(req, render=say, events=[f'job:*:{o}' for o in SAID], user=tab or None)

@app.get('/')
def index():
    folders = [o.name for o in os.scandir(root) if o.is_dir(follow_symlinks=False)]
    names = sorted(shown(o) for o in folders if o[0] not in '._' and not o.endswith('.dist-info'))
    return Title('Job board'),Main(
        Header(Div(H1('Job board'),
                P('The SHA-256 of every file in a folder. Open this page in two tabs: both move.')),
            P('Connecting …', id='connection-status')),
        Form(Label('Folder', fr='folder'),
            Input(id='folder', name='folder', list='folders', placeholder=f'all of {root.name}',
                autocomplete='off', spellcheck='false', aria_describedby='where problem'), Button('Start'),
            Datalist(*map(Option, names), id='folders'), P(f'In {root}', id='where'), P(id='problem', role='alert'),
            hx_post=start, hx_target='#problem'),
        totals(),
        Section(Header(H2('Jobs'), Button('Clear ended', hx_post=clear, hx_swap='none')),
            board(), P('Nothing yet. Start a job above.')),
        Footer('Tabs that show this page: ', looking(), '. Each browser has one connection for all of its streams.'),
        Div(id='news', role='status'),
        HTMXSSEConnector.create_sse_element(endpoint=events.to(tab=secrets.token_hex(8)),
            element_id='sse-connection', hidden=True),
        create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=1000), inline=False))

@app.post
def start(folder: str = ''):
    try: path = folder_in(root, folder)
    except (OSError, ValueError) as e: return Span(getattr(e, 'strerror', None) or str(e))  # A string would be HTML
    job = Report(secrets.token_hex(4), path, shown(os.path.join(root.name, path)))
    if not change('added', "insert into job(id, first, report) select ?1, ?2, ?2 "
        "where (select count(*) from job where state in ('waiting', 'running'))<?3",
        job.id, json.dumps(asdict(job)), AT_ONCE+WAITING):
        return Span(f'{WAITING} jobs wait already. Try again when one has begun.')
    change('cleared', f'delete from job where {OVER} and n not in '
        f'(select n from job where {OVER} order by n desc limit ?)', KEPT)
    return ''

@app.post
def cancel(id: str):
    change('ended', "update job set report=json_set(report, '$.state', 'cancelled', '$.text', '') "
        "where id=? and state in ('waiting', 'running')", id)

@app.post
def clear(id: str = ''): change('cleared', f"delete from job where {OVER} and ? in ('', id)", id)

# --- The server
def listen(host, ports):
    "Listen on the first of `ports` that is free"
    for port in ports:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        with suppress(OSError): return socket.create_server((host, port), family=family)
    raise SystemExit(f'Not free on {host}: port {ports[0]}' + f' to {ports[-1]}'*(len(ports)>1))

if __name__ == '__main__':
    listener = listen(args.host, [args.port] if args.port else range(5001, 5021))
    print(f'Job board: http://{args.host}:{listener.getsockname()[1]}', flush=True)
    app = 'main:app' if workers>1 else app  # Each worker imports it
    uvicorn.run(app, fd=listener.fileno(), workers=workers, log_level='warning')
