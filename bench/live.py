"""What live elements cost beside hand-made messages of the same rows, in one run: prints tables, writes results/live.json

    python bench/live.py [--rounds 5] [--clients 1000]

- changes: one row of 1,000 changes, and all who look at the table get it: microseconds of the server for each of them, without one drawing, and bytes
- steadily: 100 changes a second of a table whose drawing takes 5 ms: how long requests for a plain route take meanwhile
- loads: a page with the table, drawn by hand for each request, and as a live element
- visits: a page is loaded, its streams begin, it is left
"""
import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import harness
from client import PERCENT
from run import table

SERVERS = harness.Servers(Path(sys.executable))


def server(how, **env): return SERVERS.asgi(how, 'live_app:app', HOW='live' if 'live' in how else 'hand', **env)
def measured(how, steps, size=24, path='/events?n={n}', **env):
    "Steps of client.py: the figures of all of them"
    found = {}
    for got in harness.measure(sys.executable, server(how, **env), steps, size=size, path=path): found |= got
    return found

def at(ms, p): return ms[PERCENT.index(p)]


def changes(clients, times):
    "One row of 1,000 changes"
    def case(how):
        begin = [['live', '/live']] if how=='live' else []
        got = measured(how, [*begin, ['open', clients], ['changes', times]])
        own = got['drawing_us']/clients if how=='live' else 0
        return dict(us=got['us'], us_without_drawing=got['us']-own, drawing_us=got['drawing_us'], bytes=got['bytes'], p50_ms=at(got['ms'], 50), p99_ms=at(got['ms'], 99))
    return {'by hand': lambda: case('by hand'), 'live': lambda: case('live')}


def steadily(clients, secs, rate=100):
    "Changes of what takes 5 ms to draw"
    def case(how, busy=5):
        begin = [['live', '/live']] if how=='live' else []
        got = measured(how, [*begin, ['open', clients], ['steadily', secs, rate, '/plain']], ROWS='100', BUSY=str(busy))
        return dict(route_p50_ms=at(got['route_ms'], 50), route_p99_ms=at(got['route_ms'], 99), share=got['share'], seen=got['seen'])
    return {'by hand': lambda: case('by hand'), 'live': lambda: case('live'), 'live, drawn in no time': lambda: case('live', 0)}


def loads(times):
    "A page with 1,000 rows: FT elements for each drawing, or text"
    def case(how, followed=False, ft=''):
        path = '/live' if how=='live' else '/hand'
        begin = [['live', '/live'], ['open', 1]] if followed else []
        got = measured(how, [*begin, ['loads', path, times if how=='live' or not ft else max(2, times//10)]], FT=ft)
        return dict(load_us=got['load_us'], load_p50_ms=at(got['load_ms'], 50))
    return {'by hand': lambda: case('by hand', ft='yes'), 'live': lambda: case('live', ft='yes'), 'by hand, text': lambda: case('by hand'), 'live, text': lambda: case('live'),
        'live, text, followed': lambda: case('live', True)}


def visits(times, many=50):
    "A page, its streams, and the way out"
    return {name: (lambda path=path: measured('live', [['visits', path, times]])) for name,path in {
        'one stream by hand': '/many_by_hand?n=1', f'{many} streams by hand': f'/many_by_hand?n={many}', 'one live element': '/many?n=1', f'{many} live elements': f'/many?n={many}'}.items()}


def sections(clients, scale=1.):
    "All that is measured; `scale` makes it shorter"
    def n(times): return max(2, round(times*scale))
    return dict(changes=changes(clients, n(30)), steadily=steadily(max(2, clients//10), max(.3, 5*scale), 100), loads=loads(n(300)), visits=visits(n(60)))


def main(rounds, clients):
    harness.raise_limit()
    load,found = harness.load(),{}
    print(f'{harness.machine()}; {rounds} rounds', flush=True)
    for name,cases in sections(clients).items():
        print(f'\n== {name}', flush=True)
        found[name] = harness.rounds(rounds, cases)
        print(table(found[name]))
    about = dict(date=date.today().isoformat(), machine=harness.machine(), versions=dict(python=platform.python_version()), rounds=rounds, load=load, clients=clients)
    path = harness.RESULTS/'live.json'
    path.write_text(json.dumps(dict(**about, found=found), indent=1)+'\n')
    print(f'-> {path.relative_to(harness.ROOT)}')


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What live elements cost, beside hand-made messages')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--clients', type=int, default=1000)
    args = parser.parse_args()
    main(args.rounds, args.clients)
