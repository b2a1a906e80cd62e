"The benchmark measures what it says: every server that needs nothing but the dev extra, with a few clients"
import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent/'bench'))
import backends  # noqa: E402
import harness  # noqa: E402
import live  # noqa: E402
import tables  # noqa: E402

SERVERS = harness.Servers(Path(sys.executable))


@pytest.mark.parametrize('server', [SERVERS.ours(), SERVERS.ours('own', WHO='own'), SERVERS.by_hand(), SERVERS.starlette(), SERVERS.floor(),
    SERVERS.websocket(), SERVERS.websocket('compressed', compress=True), SERVERS.polling()], ids=lambda s: s.name)
def test_every_server_delivers(server):
    opened,got = harness.measure(sys.executable, server, [['open', 20], ['one_by_one', 5]])
    assert got['deliveries']==20*5
    assert min(opened['connect_us'], got['us'], got['ms'][0])>0 and got['ms']==sorted(got['ms'])


def test_a_burst_messages_to_one_and_requests_beside_messages():
    *_,burst = harness.measure(sys.executable, SERVERS.ours(), [['open', 20], ['burst', 90]])
    *_,one = harness.measure(sys.executable, SERVERS.ours(WHO='one'), [['open', 20], ['addressed', 40]])
    assert min(burst['burst_rate'], burst['burst_us'], one['us'])>0
    *_,both = harness.measure(sys.executable, SERVERS.ours(), [['open', 20], ['beside', 20, '/plain']])
    assert both['deliveries']==20*20 and both['route_ms']==sorted(both['route_ms']) and both['route_ms'][0]>0


def test_messages_that_do_not_come_are_an_error():
    one = SERVERS.ours(WHO='one')  # Each message is for one of them
    with pytest.raises(OSError, match='1 of 20 messages'): harness.measure(sys.executable, one, [['open', 20], ['one_by_one', 1]], patience=2)


def test_what_is_missing_is_named_and_left_out_and_what_does_not_start_says_why():
    def better_sse(): raise OSError('node is not installed')
    servers = harness.Servers(Path(sys.executable))
    assert [s.name for s in servers.those_here(better_sse, servers.floor)]==['uvloop floor']
    assert servers.lacking==['better_sse: node is not installed']
    with pytest.raises(OSError, match='did not start: .*nowhere'): harness.measure(sys.executable, SERVERS.asgi('typo', 'nowhere:app'), [])


def test_rounds_take_turns_and_keep_what_failed():
    order = []
    def case(name, fails=()):
        def f():
            order.append(name)
            if len(order) in fails: raise OSError('gone')
            return dict(us=float(len(order)))
        return f
    found = harness.rounds(2, dict(a=case('a'), b=case('b', fails=[3])))
    assert order==['a', 'b', 'b', 'a']
    assert found==dict(a=dict(us=[1, 4]), b=dict(us=[2, None]))
    assert harness.middle(found['b']['us'])==(2, 2, 2)


def test_where_others_are_ahead_leaves_out_no_figure_of_the_tables_and_no_python():
    page = json.loads((Path(__file__).resolve().parent.parent/'nbs/speed.ipynb').read_text(encoding='utf-8'))
    code = [ast.parse(''.join(c['source'])) for c in page['cells'] if c['cell_type']=='code']
    calls = [(ast.unparse(o.func), *map(ast.literal_eval, o.args)) for c in code for o in ast.walk(c)
             if isinstance(o, ast.Call) and ast.unparse(o.func) in ('table', 'ahead')]
    (_,figures), = [o for o in calls if o[0]=='ahead']
    assert {*figures}=={(section, k) for f,section,*columns in calls if f=='table' and section in ('fanout', 'growth') for k in columns[0].values()}
    head,_,*body = tables.ahead(figures).data.split('\n')
    assert len(body)==len(figures) and head.count('who is ahead')==len(tables.measured)>1


def test_ahead_is_whose_median_is_better(monkeypatch):
    def found(**rows): return dict(fanout=dict(found={n: dict(us=us, burst_rate=rate) for n,(us,rate) in rows.items()}, versions=dict(python='3.0')))
    monkeypatch.setattr(tables, 'measured', [found(ours=([9], [9]), a=([8, 8, 20], [8]), b=([7], [10])), found(ours=([1], [9]), a=([2], [9]))])
    *_,us,rate = tables.ahead({('fanout', 'us'): 'us', ('fanout', 'burst_rate'): 'rate', ('growth', 'us'): 'nowhere'}).data.split('\n')
    assert us=='| us | 1 | nobody | 9 | b 7, a 8 |' and rate=='| rate | 9 | nobody | 9 | b 10 |'


def test_each_backend_is_measured_and_each_figure_has_its_row(monkeypatch, tmp_path):
    for name,value in dict(SECS=.1, IDLE=.1, BUSY=.1, BURST=20).items(): monkeypatch.setattr(backends, name, value)
    found = {name: backends.case(name, tmp_path) for name in ('memory', *backends.FILES)}
    assert all(v>0 or k=='idle' for row in found.values() for k,v in row.items())
    kept = json.loads((backends.harness.RESULTS/'backends.json').read_text())['found']
    assert kept['`sqlite:///`'].keys()==found['`sqlite:///`'].keys()
    rows = tables.backends().data.split('\n\n')[0].split('\n')[2:]
    assert len(rows)==len({k for row in kept.values() for k in row}) and all(len(kept)+3==o.count('|')+1 for o in rows)


def test_live_elements_are_measured_beside_messages_by_hand():
    "Every client gets each change"
    found = live.sections(10, .5)
    some = dict(changes=['by hand', 'live'], steadily=['live, drawn in no time'], loads=['live, text, followed'], visits=['50 live elements'])
    for section,names in some.items():
        for name in names:
            got = found[section][name]()
            assert all(v>0 for k,v in got.items() if not k.startswith('route')), (section, name, got)
    assert {k: [*v] for k,v in found.items()}.keys()==some.keys()
