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

def when(o): return f"{o['rounds']} rounds, {o['date']}, Python {o['versions']['python']}"


def about(section='fanout'):
    "When, on what and with what"
    if (o := results.get(section)) is None: return UNKNOWN
    versions = ', '.join(f'{k} {v}' for k,v in sorted(o['versions'].items()))
    lacking = f" Missing: {'; '.join(o['lacking'])}." if o['lacking'] else ''
    return Markdown(f"Measured on {o['date']}, {o['machine']}. Versions: {versions}.{lacking}")


def table(section, columns):
    "Medians of the rounds, with the least and the most; `columns` maps titles to figures, or to a figure and what it is multiplied with"
    if (o := results.get(section)) is None: return UNKNOWN
    keys = [(k, 1) if isinstance(k, str) else k for k in columns.values()]
    body = [[called(name), *(spread(row[k], scale) if k in row else '' for k,scale in keys)] for name,row in o['found'].items()]
    return Markdown(f"{rows(['', *columns], body).data}\n\n{when(o)}.")


def ahead(figures):
    "Where the median of a peer is better than ours: `figures` maps sections and figures to titles"
    body = []
    for (section,k),title in figures.items():
        if section not in results: continue
        medians = {name: middle(row[k]) for name,row in results[section]['found'].items() if k in row}
        ours,more = medians.pop('ours'),k=='burst_rate'  # Of all else, less is better
        better = sorted((n for n,v in medians.items() if (v>ours if more else v<ours)), key=medians.get, reverse=more)
        body.append([title, number(ours), ', '.join(f'{n} {number(medians[n])}' for n in better) or 'nobody'])
    return rows(['figure', 'this library', 'who is ahead'], body)


def ratio(o, k, one, other):
    "Median of the rounds' ratios"
    return statistics.median(x/y for x,y in zip(o['found'][one][k], o['found'][other][k], strict=True) if x and y)


def by_python(figures):
    "Ours under each Python; costs as a multiple of the floor too"
    def told(o, k): return number(middle(o['found']['ours'][k]))+(f", {ratio(o, k, 'ours', 'uvloop floor'):.1f} times the floor" if k.startswith('us') else '')
    return rows(['Python', *figures.values()], [[o['versions']['python'], *(told(o, k) for k in figures)] for data in measured if (o := data.get('fanout'))])


def capacity(share=.25):
    "Broadcasts a second that take `share` of a core, and the memory of the connections"
    if 'fanout' not in results: return UNKNOWN
    found = {**results.get('large', dict(found=dict(ours={})))['found']['ours'], **results['fanout']['found']['ours']}
    ns = [n for n in (100, 1000, 5000, 10_000) if f'us_{n}' in found]
    return rows(['clients', 'broadcasts/s', 'MB of memory'], [[f'{n:,}', number(share*1e6/(n*middle(found[f'us_{n}']))), number(n*middle(found['kb'])/1000)] for n in ns])
