"""What results/ holds, as tables for the docs: the pages "Speed" and "Comparison" import this"""
import json
import statistics
from pathlib import Path

from IPython.display import Markdown


def minor(path): return int(path.stem.rpartition('.')[2])

measured = [json.loads(p.read_text(encoding='utf-8')) for p in sorted((Path(__file__).parent/'results').glob('python3.*.json'), key=minor)]
results = measured[-1] if measured else {}  # The newest Python
UNKNOWN = Markdown('*Not measured yet.*')


def middle(values): return statistics.median([v for v in values if v is not None])

def number(x): return f'{x:,.0f}' if x>=100 else f'{x:.3g}'

def spread(values, scale=1):
    there = [v*scale for v in values if v is not None]
    return f'{number(middle(there))} ({number(min(there))} to {number(max(there))})'

def called(name): return name.replace('ours', '**this library**')

def rows(head, body): return Markdown('\n'.join('| '+' | '.join(o)+' |' for o in (head, ['---']*len(head), *body)))

def when(o): return f"{o['rounds']} round{'s'*(o['rounds']>1)}, {o['date']}, Python {o['versions']['python']}"


def about(section='fanout'):
    "When, on what and with what"
    if (o := results.get(section)) is None: return UNKNOWN
    versions = ', '.join(f'{k} {v}' for k,v in sorted(o['versions'].items()))
    lacking = f" Missing: {'; '.join(o['lacking'])}." if o['lacking'] else ''
    busy = f", load {o['load']} when it began" if 'load' in o else ''
    return Markdown(f"Measured on {o['date']}, {o['machine']}{busy}. Versions: {versions}.{lacking}")


def table(section, columns, first=''):
    "Medians of the rounds, with the least and the most; `columns` maps titles to figures, or to a figure and what it is multiplied with"
    if (o := results.get(section)) is None: return UNKNOWN
    return _table(o, {called(name): row for name,row in o['found'].items()}, columns, first)


def _table(o, found, columns, first=''):
    keys = [(k, 1) if isinstance(k, str) else k for k in columns.values()]
    body = [[name, *(spread(row[k], scale) if k in row else '' for k,scale in keys)] for name,row in found.items()]
    return Markdown(f"{rows([first, *columns], body).data}\n\n{when(o)}.")


def live(section, names, columns):
    "What live elements cost, as `table`; `names` maps titles of rows to what bench/live.py calls them"
    path = Path(__file__).parent/'results/live.json'
    if not path.exists(): return UNKNOWN
    o = json.loads(path.read_text(encoding='utf-8'))
    return _table(o, {title: o['found'][section][name] for title,name in names.items()}, columns)


def ahead(figures):
    "Where the median of a peer is better than ours, under each Python: `figures` maps sections and figures to titles"
    newest_first,body = measured[::-1],[]
    for (section,k),title in figures.items():
        found = [_better(data[section]['found'], k) if section in data else ('', '') for data in newest_first]
        if any(ours for ours,_ in found): body.append([title, *(o for pair in found for o in pair)])
    return rows(['figure', *(o for data in newest_first for o in (f'this library, Python {_python(data)}', 'who is ahead'))], body)


def _python(data): return next(iter(data.values()))['versions']['python']


def _better(found, k):
    medians = {name: middle(row[k]) for name,row in found.items() if k in row}
    if 'ours' not in medians: return '',''
    ours,more = medians.pop('ours'),k=='burst_rate'  # Of all else, less is better
    better = sorted((n for n,v in medians.items() if (v>ours if more else v<ours)), key=medians.get, reverse=more)
    return number(ours),', '.join(f'{n} {number(medians[n])}' for n in better) or 'nobody'


RATIOS = [  # What, where it stands, ours and what it is compared with
    ('processor time of a delivery, 1,000 clients', 'fanout', ('ours', 'us_1000'), [('uvloop floor', 'us_1000'), ('nchan', 'us_1000'), ('better-sse', 'us_1000'), ('Starlette', 'us_1000'), ('sse-starlette', 'us_1000')]),
    ('processor time of a delivery, 5,000 clients', 'fanout', ('ours', 'us_5000'), [('uvloop floor', 'us_5000'), ('nchan', 'us_5000'), ('better-sse', 'us_5000'), ('Starlette', 'us_5000'), ('sse-starlette', 'us_5000')]),
    *((f'processor time of a delivery, {k:,} clients, growing', 'growth', ('ours', f'us_{k}'), [('C floor', f'us_{k}')]) for k in (1000, 5000, 10_000, 15_000)),
    ('processor time of a delivery, 10,000 clients', 'growth', ('ours', 'us_10000'), [('uvloop floor', 'us_10000'), ('nchan', 'us_10000'), ('better-sse', 'us_10000')]),
    ('deliveries/s in a burst of 90, 1,000 clients', 'fanout', ('ours', 'burst_rate'), [('uvloop floor', 'burst_rate'), ('nchan', 'burst_rate'), ('better-sse', 'burst_rate')]),
    ('time until 99 % of 5,000 have it', 'fanout', ('ours', 'p99_5000'), [('nchan', 'p99_5000'), ('better-sse', 'p99_5000'), ('Starlette', 'p99_5000')]),
    ('memory of a connection', 'fanout', ('ours', 'kb'), [('nchan', 'kb'), ('better-sse', 'kb'), ('Starlette', 'kb')]),
    ('processor time to connect', 'fanout', ('ours', 'connect_us'), [('better-sse', 'connect_us'), ('Starlette', 'connect_us')]),
    ('processor time to connect', 'connecting', ('ours', 'connect_us'), [('a route that waits', 'connect_us')]),
    ('memory of a connection', 'connecting', ('ours', 'kb'), [('a route that waits', 'kb'), ('the same, without page headers', 'kb')]),
    ('1 channel to a carrier, 1,000 streams', 'channels', ('1 channel to a carrier', 'us_1000'), [('a connection for each', 'us_1000')]),
    ('1 channel to a carrier, 5,000 streams', 'channels', ('1 channel to a carrier', 'us_5000'), [('a connection for each', 'us_5000')]),
    ('20 channels to a carrier, 1,000 streams', 'channels', ('20 channels to a carrier', 'us_1000'), [('a connection for each', 'us_1000')]),
    ('patterns of its own for each, 1,000 clients', 'groups', ('own', 'us_1000'), [('shared', 'us_1000')]),
    ('patterns of its own for each, 5,000 clients', 'groups', ('own', 'us_5000'), [('shared', 'us_5000')]),
    ('a call of `broadcast`, 1,000 of 10,000 stalled', 'inside', ('ours', 'call_tenth'), [('ours', 'call_none')]),
    ('time until 99 % have it, 5 of 105 stalled', 'stalled', ('5 stalled', 'p99'), [('none stalled', 'p99')]),
    ('time until 99 % have it, 30 of 1,000 stalled', 'stalled', ('970 clients, 30 stalled', 'p99'), [('970 clients, none stalled', 'p99')]),
    ('a message to one of 10,000', 'addressed', ('ours', 'us_10000'), [('ours', 'us_10')]),
    ('without FastHTML, 1,000 clients', 'by_hand', ('ours, without FastHTML', 'us_1000'), [('ours', 'us_1000')]),
    ('without FastHTML, to connect', 'by_hand', ('ours, without FastHTML', 'connect_us'), [('ours', 'connect_us'), ('Starlette', 'connect_us')]),
    ('streams by hand, 1,000 clients', 'by_hand', ('ours, by hand', 'us_1000'), [('Starlette', 'us_1000')]),
    ('streams by hand, 5,000 clients', 'by_hand', ('ours, by hand', 'us_5000'), [('Starlette', 'us_5000')])]
BESIDE = dict(call_none='none stalled', us_10='one of 10')  # Where it is compared with itself


def ratio(section, one, other):
    "Of the rounds' ratios the median, the least and the most"
    pairs = [section['found'].get(name, {}).get(k, []) for name,k in (one, other)]
    rounds = [x/y for x,y in zip(*pairs, strict=False) if x and y]
    return spread(rounds) if rounds else ''


def ratios():
    "Ours as a multiple of theirs, round by round, under each Python"
    newest_first,body = measured[::-1],[]
    for title,section,one,others in RATIOS:
        for other in others:
            found = [ratio(data[section], one, other) if section in data else '' for data in newest_first]
            if any(found): body.append([title, BESIDE.get(other[1], other[0]), *found])
            title = title if not any(found) else ''
    return rows(['this library', 'beside', *(f'Python {_python(data)}' for data in newest_first)], body)


def backends():
    "What the backends cost, side by side, with when and where it was measured"
    path = Path(__file__).parent/'results/backends.json'
    if not path.exists(): return UNKNOWN
    o = json.loads(path.read_text(encoding='utf-8'))
    titles = dict(p50='ms until another process has it, p50', p99='p99', one_by_one='broadcasts/s, each awaited', at_once='2,000 at once',
        script='from a script, `Publisher`', transactions='transactions/s, with a row and a broadcast',
        idle='% of a core, an idle process', server_idle='an idle server')
    body = [[title, *(spread(row[k]) if k in row else '' for row in o['found'].values())] for k,title in titles.items()]
    versions = ', '.join(f'{k} {v}' for k,v in o['versions'].items())
    return Markdown(f"{rows(['', *o['found']], body).data}\n\n{o['rounds']} rounds on {o['date']}, {o['machine']}, load {o['load']} when it began; "
        f"the disk takes {o['fsync_ms']} ms to keep a page. Versions: {versions}. In memory, the other process is the same one.")


def capacity(share=.25):
    "Broadcasts a second that take `share` of a core, and the memory of the connections"
    if 'fanout' not in results: return UNKNOWN
    found = {**results.get('growth', dict(found=dict(ours={})))['found']['ours'], **results['fanout']['found']['ours']}
    ns = [n for n in (100, 1000, 5000, 10_000) if f'us_{n}' in found]
    return rows(['clients', 'broadcasts/s', 'MB of memory'], [[f'{n:,}', number(share*1e6/(n*middle(found[f'us_{n}']))), number(n*middle(found['kb'])/1000)] for n in ns])
