"""A job board: each job computes the SHA-256 of every file in a folder, and every open tab shows how far it is

    python demo/main.py                          the installed Python packages, at http://127.0.0.1:5001
    python demo/main.py --root /srv --port 8000  folders in /srv
    python demo/main.py --htmx4                  the same page with htmx 4
"""
import argparse,asyncio,ipaddress,os,secrets,socket,sysconfig,threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
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
parser.add_argument('--htmx4', action='store_true', help='load htmx 4 instead of htmx 2; nothing else differs')
args = parser.parse_args()
root,rate,here = Path(args.root).resolve(),args.rate*1e6 or float('inf'),Path(__file__).resolve().parent
if not root.is_dir(): parser.error(f'there is no folder {root}')
AT_ONCE,WAITING,KEPT = 8,16,100  # Jobs that run, that wait at most, and that are kept after their end

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
sse,updater,state = SSEBroadcastManager(retry=1000),SSEElementUpdater(),SSEEventDispatcher()
pool = ThreadPoolExecutor(AT_ONCE)

async def stop_all():
    "Stop the threads at shutdown; each ends after the block that it reads"
    for o in stops.values(): o.set()
    pool.shutdown(wait=False, cancel_futures=True)
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while running(): await asyncio.sleep(.01)

scripts,routes = htmx(4 if args.htmx4 else 2)
viewport = Meta(name='viewport', content='width=device-width, initial-scale=1')
style = Style((here/'style.css').read_text(encoding='utf-8'))
app = FastHTML(default_hdrs=False, routes=routes, secret_key=secrets.token_hex(), on_shutdown=[stop_all],
    htmlkw=dict(lang='en'), middleware=[Middleware(Guard)],
    hdrs=(Meta(charset='utf-8'), viewport, Link(rel='icon', href=ICON), style, *scripts))
setup_sse(app, sse)

# --- The state: changed by the events that all tabs get, so it can't differ from what they show
jobs,stops,threads = {},{},{}  # Job id, the oldest first -> its newest report; what stops it; its place in the queue

def in_state(*states): return [o for o in jobs.values() if o.state in states]
def running(): return in_state('running')
def over(): return in_state('finished', 'cancelled', 'failed')

@sse.on_broadcast
async def enter(message): await state.dispatch(message)

@state.on('job:*:*', priority=1)
def keep(event): jobs[event.data.id] = event.data

@state.on('job:*:cleared')
def forget(event): del jobs[event.data.id], stops[event.data.id], threads[event.data.id]

@state.on('job:*:*')
async def add_up(event): await sse.broadcast('board:totals', totals(), key='totals')

@sse.on_connect
@sse.on_disconnect
async def count(connection): await sse.broadcast('board:tabs', len(sse.present(0)), key='tabs')

def totals():
    now,known = running(),jobs.values()
    return dict(running=len(now), speed=sum(o.speed for o in now), files=sum(o.files for o in known),
        bytes=sum(o.bytes for o in known))

# --- A job, in a thread of its own
def run(job, stop):
    began,sent,job = monotonic(),0.,replace(job, state='running')
    def send(what, key=None): sse.broadcast_threadsafe(f'job:{job.id}:{what}', job, key=key)
    send('begun')
    try:
        for job in hash_folder(job, root):
            stopped = stop.wait(max(0, job.bytes/rate - (monotonic()-began)))  # Leaves the disk to others, too
            job = replace(job, seconds=monotonic()-began, **(dict(state='cancelled', text='') if stopped else {}))
            if job.state!='running': break
            if job.seconds-sent > .15:
                sent = job.seconds
                send('progress', key='newest')  # To a slow tab only the newest progress is sent
    except Exception as e:
        job = replace(job, state='failed', text=f'Nothing could be read: {getattr(e, "strerror", None) or repr(e)}')
    send('ended')

# --- What happened, as elements
@updater.register('job:*:added')
def added(job): return oob_element('jobs', row(job), 'afterbegin', element_type=Ul),say(f'{job.name} waits')

@updater.register('job:*:begun')
def begun(job): return oob_swap(row(job)),say(f'{job.name} started')

@updater.register('job:*:progress')
def progressed(job): return oob_swap(progress(job))

@updater.register('job:*:ended')
def ended(job): return oob_swap(row(job)),say(f'{job.name} {job.state}')

@updater.register('job:*:cleared')
def cleared(job): return oob_swap(Li(id=f'job-{job.id}'), 'delete')

@updater.register('board:totals')
def total(values): return oob_update('totals', tiles(**values), element_type=Dl)

@updater.register('board:tabs')
def looking(n): return oob_update('tabs', f'{n:,}', element_type=Span)

def board():
    "Draw the current state, for a tab whose missed messages are not available any more"
    return oob_update('jobs', rows(), element_type=Ul),total(totals()),looking(len(sse.present(0)))

# --- The elements
def say(text): return oob_update('news', text)
def rows(): return [row(o) for o in reversed(jobs.values())]
def size(n): return f'{n/1e9:,.2f} GB' if n>=1e9 else f'{n/1e6:,.1f} MB' if n>=1e5 else f'{n:,} bytes'
def of(a, b): return a if a==b else f'{a} of {b}'

def tiles(running, speed, files, bytes):
    values = {'Running': f'{running:,}', 'Files per second': f'{speed:,.0f}', 'Files read': f'{files:,}',
        'Data read': size(bytes)}
    return [Div(Dt(k), Dd(v)) for k,v in values.items()]

def row(job):
    name,route = ('Cancel',cancel) if job.state in ('waiting', 'running') else ('Clear',clear)
    return Li(Div(H3(job.name), Span(job.state.title(), cls='chip'),
        Button(name, id=f'act-{job.id}', hx_post=route.to(id=job.id), hx_swap='none', aria_label=f'{name} {job.name}'),
        cls='head'), progress(job), unread(job), moves(job), id=f'job-{job.id}', cls=job.state)

def moves(job):
    "Connect a running job to the stream of its progress, which goes with the row"
    if job.state!='running': return None
    return HTMXSSEConnector.create_sse_element(endpoint=job_events.to(id=job.id), hidden=True, auto_reconnect=False)

def progress(job):
    "Draw the part of a row that changes; it is replaced often, so nothing in it may take the focus or be opened"
    looking,files = job.state=='running' and not job.size,of(f'{job.files:,}', f'{job.found:,}')
    return Div(Progress(id=f'bar-{job.id}', max=1, value=None if looking else f'{job.done:.4f}'),
        Div(Label(f'{job.found:,} files found' if looking else f'{files} files', fr=f'bar-{job.id}'),
            Span(of(size(job.bytes), size(job.size))), Span(f'{job.speed:,.0f} files/s'),
            Span(f'{job.seconds:,.1f} s'),
            Span(f'{job.unread:,} unread', cls='unread') if job.unread else None, cls='figures'),
        Code(job.text) if job.state in ('running', 'finished') else P(job.text),
        id=f'progress-{job.id}' if job.state=='running' else None)

def unread(job):
    if job.state=='running' or not job.unread: return None
    lines,more = [Li(Code(name), f' {reason}') for name,reason in job.reasons],job.unread-len(job.reasons)
    return Details(Summary('What could not be read'), Ul(*lines, Li(f'and {more:,} more') if more else None))

# --- The routes
@app.get
def events(req):
    wanted = ['board:*', *(f'job:*:{o}' for o in ('added', 'begun', 'ended', 'cleared'))]
    return sse.stream(req, render=updater, events=wanted, snapshot=board, user=secrets.token_hex(4))

@app.get
def job_events(req, id: str):
    return sse.stream(req, render=updater, events=f'job:{segment(id)}:progress', until=f'job:{segment(id)}:ended')

@app.get('/')
async def index():  # On the event loop, as all that changes the state; a plain `def` runs in a thread
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
        Dl(*tiles(**totals()), id='totals'),
        Section(Header(H2('Jobs'), Button('Clear ended', hx_post=clear, hx_swap='none')),
            Ul(*rows(), id='jobs'), P('Nothing yet. Start a job above.')),
        Footer('Tabs that show this page: ', Span(f'{len(sse.present(0)):,}', id='tabs'),
            '. Each browser has one connection for all of its streams.'),
        Div(id='news', role='status'),
        HTMXSSEConnector.create_sse_element(endpoint=events, element_id='sse-connection', hidden=True),
        create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(reconnect_delay=1000), inline=False))

@app.post
async def start(folder: str = ''):
    try: path = folder_in(root, folder)
    except (OSError, ValueError) as e: return Span(getattr(e, 'strerror', None) or str(e))  # A string would be HTML
    if len(in_state('waiting'))>=WAITING: return Span(f'{WAITING} jobs wait already. Try again when one has begun.')
    id = secrets.token_hex(4)
    jobs[id],stops[id] = Report(id, path, shown(os.path.join(root.name, path))),threading.Event()
    await sse.broadcast(f'job:{id}:added', jobs[id])
    threads[id] = pool.submit(run, jobs[id], stops[id])
    for old in over()[:-KEPT]: await sse.broadcast(f'job:{old.id}:cleared', old)
    return ''

@app.post
async def cancel(id: str):
    if stop := stops.get(id): stop.set()
    if id in threads and threads[id].cancel():  # It has not begun
        await sse.broadcast(f'job:{id}:ended', replace(jobs[id], state='cancelled'))

@app.post
async def clear(id: str = None):
    for job in over():
        if id in (None, job.id): await sse.broadcast(f'job:{job.id}:cleared', job)

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
    with suppress(KeyboardInterrupt): uvicorn.Server(uvicorn.Config(app, log_level='warning')).run([listener])
