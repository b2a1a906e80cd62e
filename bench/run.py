"""What a broadcast costs, beside peers, in one run: prints tables, writes results/python3.x.json, draws the pictures of the page "Speed"

    python bench/run.py                   the essential comparison, under five minutes; `make bench` does it
    python bench/run.py all               everything, in about forty; `make bench-all`
    python bench/run.py sizes gc          some sections

The interpreter that runs this is the one that is measured: `make bench PYTHON=python3.13`. Packages of the peers go into bench/.env/, on the first run.
"""
import argparse
import json
import subprocess
import sys
import time

import harness
from client import PERCENT
from harness import HERE, measure

SECTIONS = {}


def section(f):
    "Register `f(servers, n)`; it returns name -> figures, of `n` rounds that take turns"
    SECTIONS[f.__name__] = f
    return f


def ladder(servers, server, clients, burst=0, **client):
    """One server with more and more clients: `clients` maps their number to how often a message is published and waited for.
    A burst of `burst` messages comes after the step with 1,000"""
    steps = []
    for n,times in clients.items():
        steps += [['open', n], ['one_by_one', times, max(3, times//2)]]
        if n==1000 and burst: steps += [['burst', burst]]
    flat,n = {},0
    for (name,arg,*_),got in zip(steps, measure(servers.python, server, steps, **client), strict=True):
        if name=='open':
            n = arg
            if n>=1000: flat |= got  # Of the last step, where most of them came
        elif name=='one_by_one': flat |= {f'us_{n}': got['us'], f'client_us_{n}': got['client_us'], f'ms_{n}': got['ms'], f'p99_{n}': got['ms'][PERCENT.index(99)], f'max_{n}': got['ms'][-1]}
        else: flat |= got
    return flat


def ladders(servers, n, those, clients, burst=0, **client):
    return harness.rounds(n, {s.name: (lambda s=s: ladder(servers, s, clients, burst, **client)) for s in those})


def script(servers, name, *args):
    "What a file of this folder prints, as JSON"
    done = subprocess.run([str(servers.python), str(HERE/name), *map(str, args)], capture_output=True, text=True, timeout=200)
    if done.returncode: raise OSError(done.stderr[-400:])
    return json.loads(done.stdout)


@section
def fanout(servers, n):
    "One message to all: this library through `manager.stream` on FastHTML, beside peers"
    those = [servers.floor(), *servers.those_here(servers.nchan, servers.better_sse), servers.ours(), servers.starlette(), servers.sse_starlette()]
    return ladders(servers, n, those, {100: 50, 1000: 20, 5000: 8}, burst=90)


@section
def growth(servers, n):
    "One message to more and more clients, up to as many as there may be open files"
    those = [*servers.those_here(servers.c_floor), servers.floor(), *servers.those_here(servers.nchan, servers.better_sse), servers.ours()]
    return ladders(servers, n, those, {1000: 20, 5000: 6, 10_000: 4, 15_000: 3, min(20_000, harness.raise_limit()-100): 3})


@section
def connecting(servers, n):
    "What opening a stream costs, beside a route of the same app that answers and waits"
    def case(path='/events?n={n}', **env): return measure(servers.python, servers.ours(**env), [['open', 1000], ['open', 3000]], path=path)[-1]
    waits = '/parked?n={n}'
    return harness.rounds(n, {'ours': case, 'a route that waits': lambda: case(waits), 'the same, without page headers': lambda: case(waits, HEADERS='no')})


@section
def memory(servers, n):
    "Where the memory of an open stream is, and of a route that answers and waits: KB by the package whose code took it"
    return harness.rounds(n, {'ours': lambda: script(servers, 'memory.py', '/events?n=1'), 'a route that waits': lambda: script(servers, 'memory.py', '/parked?n=1')})


@section
def batches(servers, n):
    "Requests for a plain route while messages go to 10,000, by the number of connections that are served between two looks at the event loop"
    def case(size):
        _,got = measure(servers.python, servers.ours(BATCH=str(size)), [['open', 10_000], ['beside', 15, '/plain']])
        return {f'{k}_{p}': got[k][PERCENT.index(p)] for k in ('ms', 'route_ms') for p in (50, 99)} | dict(us=got['us'])
    return harness.rounds(n, {f'{size}': (lambda size=size: case(size)) for size in (100, 200, 500, 1000)})


@section
def sizes(servers, n):
    "Messages of 200 bytes, 2 KB and 20 KB to 1,000"
    cases = {f'{s.name}, {size:,} bytes': (lambda s=s, size=size: ladder(servers, s, {1000: 20}, size=size))
        for size in (200, 2000, 20_000) for s in (servers.floor(), servers.ours(), servers.starlette())}
    return harness.rounds(n, cases)


@section
def asgi(servers, n):
    "The same app under uvicorn, hypercorn and granian, and without the direct path"
    those = [make(f'{name}, {under}', under=under) for under in ('uvicorn', 'hypercorn', 'granian') for name,make in dict(ours=servers.ours, Starlette=servers.starlette).items()]
    return ladders(servers, n, [*those, servers.ours('ours, uvicorn, `direct=False`', DIRECT='no')], {1000: 20})


@section
def groups(servers, n):
    "Every connection with patterns of its own, against one that all share"
    return ladders(servers, n, [servers.ours('shared'), servers.ours('own', WHO='own')], {1000: 20, 5000: 8})


@section
def by_hand(servers, n):
    "`register_connection` and a stream written by hand, against Starlette with a queue; and `stream` without FastHTML"
    return ladders(servers, n, [servers.by_hand(), servers.starlette(), servers.ours(), servers.ours('ours, without FastHTML', HOST='starlette')], {1000: 20, 5000: 8})


@section
def addressed(servers, n):
    "A message to one connection, among ten and among ten thousand"
    def case(): return dict(zip(('us_10', 'us_10000'), [r['us'] for r in measure(servers.python, servers.ours(WHO='one'),
        [['open', 10], ['addressed', 1000], ['addressed', 1000], ['open', 10_000], ['addressed', 1000], ['addressed', 1000]])[2::3]], strict=True))
    return harness.rounds(n, dict(ours=case))


@section
def stalled(servers, n):
    "Healthy clients, and some more that read nothing, for as long as it takes to fill all buffers and evict them"
    def case(healthy, deaf, messages):
        steps = [['open', healthy]] + [['stall', deaf]]*(deaf>0) + [['one_by_one', messages]]
        got = measure(servers.python, servers.ours(), steps, size=20_000)[-1]
        return dict(us=got['us'], p50=got['ms'][PERCENT.index(50)], p99=got['ms'][PERCENT.index(99)], max=got['ms'][-1])
    return harness.rounds(n, {'none stalled': lambda: case(100, 0, 400), '5 stalled': lambda: case(100, 5, 400),
                              '970 clients, none stalled': lambda: case(970, 0, 200), '970 clients, 30 stalled': lambda: case(970, 30, 200)})


@section
def gc(servers, n):
    "The garbage collector: as it is, frozen after the imports, with higher thresholds, off"
    those = [servers.ours('default')] + [servers.ours(how, GC=how) for how in ('freeze', 'rare', 'off')]
    return ladders(servers, n, those, {5000: 20})


@section
def inside(servers, n):
    "In one process, without sockets: `broadcast` alone with 10,000 streams, none or a tenth of them stalled; one rendering; one encoding"
    return harness.rounds(n, dict(ours=lambda: script(servers, 'inside.py')))


@section
def channels(servers, n):
    "Streams on connections of their own, and as channels of carriers"
    return harness.rounds(n, {name: (lambda each=each: script(servers, 'multiplex.py', each)) for name,each in {'a connection for each': 0, '20 channels to a carrier': 20, '1 channel to a carrier': 1}.items()})


def table(found):
    "Figures as text: medians, with the least and the most of the rounds"
    keys = list(dict.fromkeys(k for row in found.values() for k in row if not k.startswith('ms_')))
    def told(values): return '{:.4g} ({:.3g}-{:.3g})'.format(*harness.middle(values)) if values else ''
    rows = [['', *keys]]+[[name, *(told(row.get(k)) for k in keys)] for name,row in found.items()]
    widths = [max(len(r[i]) for r in rows) for i in range(len(keys)+1)]
    return '\n'.join('  '.join(c.ljust(w) for c,w in zip(r, widths, strict=True)).rstrip() for r in rows)


def main(names, n):
    names = [*SECTIONS] if names==['all'] else names
    if unknown := set(names)-SECTIONS.keys(): sys.exit(f"no such section: {', '.join(unknown)}. There are: all, {', '.join(SECTIONS)}")
    begin = time.monotonic()
    limit = harness.raise_limit()
    servers = harness.Servers()
    if limit<15_100: print(f'`ulimit -Hn` is {limit}: sections with more clients than that will fail')
    print(f'{harness.machine()}; {n} rounds', flush=True)
    for name in names:
        print(f'\n== {name}: {SECTIONS[name].__doc__}', flush=True)
        servers.lacking.clear()
        load,found = harness.load(),SECTIONS[name](servers, n)
        print(table(found))
        harness.save(name, servers, found, n, load)
    subprocess.run([str(servers.python), str(HERE/'plots.py')], check=True)
    print(f'{time.monotonic()-begin:.0f} s')


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What a broadcast costs, beside peers')
    parser.add_argument('sections', nargs='*', default=['fanout'], help=f"all, or some of: {', '.join(SECTIONS)}")
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    main(args.sections, args.rounds)
