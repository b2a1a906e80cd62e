"""What stands in a page: out-of-band elements, attributes that connect to a stream, the monitor, the clean-up script

`swap_type` of a connected element is the name of the event that it swaps in; how it swaps is `swap=`. Several
`events` are all kept. A closing event is named that the server really sends. Ids of jobs are quoted in URLs and stay
as they are elsewhere. No id, indicator or URL breaks out of the place where it is written.
"""
import json
from html.parser import HTMLParser

import pytest
from fasthtml.common import Div, FastHTML, Form, Input, Li, Option, P, Select, Span, Tbody, Td, Tr, to_xml

from cjm_fasthtml_sse.helpers import cleanup_sse_on_unload, oob_element, oob_swap, oob_update, sse_element
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.monitoring import SSEMonitorConfig, create_sse_monitor

CLOSE = 'sse:close'  # The event that ends a stream on purpose


class Tags(HTMLParser):
    "The tags of some HTML: `found` are (name, attributes)"
    def __init__(self, html):
        super().__init__()
        self.found,self.text = [],''
        self.feed(html)

    def handle_starttag(self, tag, attrs): self.found.append((tag, dict(attrs)))
    def handle_data(self, data): self.text += data


def html(element): return to_xml(element, indent=False)
def tags(element): return Tags(html(element)).found
def attrs(element): return tags(element)[0][1]


class TestOutOfBand:
    "`oob_swap` marks an element, `oob_element` and `oob_update` make one around some content"

    def test_changes_and_returns_its_element(self):
        element = Li('Milk', id='item-1')
        assert oob_swap(element) is element and html(element)=='<li id="item-1" hx-swap-oob="outerHTML">Milk</li>'

    @pytest.mark.parametrize('args, want', [
        (dict(), 'outerHTML'), (dict(swap_type='delete'), 'delete'),
        (dict(swap_type='of-an-extension'), 'of-an-extension'),
        (dict(swap_type='beforeend', target_id='todos'), 'beforeend:#todos'),
        (dict(swap_type='beforeend:#todos'), 'beforeend:#todos'),
        (dict(swap_type='innerHTML swap:1s'), 'innerHTML swap:1s')])
    def test_swap_style(self, args, want): assert attrs(oob_swap(Li(id='x'), **args))['hx-swap-oob']==want

    @pytest.mark.parametrize('style, want',
        [('beforeEnd', 'beforeend'), ('innerhtml', 'innerHTML'), ('OuterHTML', 'outerHTML'),
                                             ('afterBegin:#todos', 'afterbegin:#todos')])
    def test_capitals_of_a_swap_style(self, style, want):
        "htmx is strict about them: `beforeEnd` would replace the whole element without a word"
        assert attrs(oob_swap(Li(id='x'), style))['hx-swap-oob']==want

    @pytest.mark.parametrize('target', ['a.b:c', '7up', 'user@host', 'a b'])
    def test_target_is_a_css_selector(self, target):
        "Whatever the id holds, the selector names that id and nothing else"
        selector = attrs(oob_swap(Li('x'), 'beforeend', target))['hx-swap-oob'].removeprefix('beforeend:#')
        assert not set(selector) & set('.:@ ') and not selector[0].isdigit()

    @pytest.mark.parametrize('content, want', [
        (3, '3'), ('text', 'text'), (None, ''), (Li('a'), '<li>a</li>'), ([Li('a'), Li('b')], '<li>a</li><li>b</li>'),
        ((Li('a'), 'b'), '<li>a</li>b'), (0, '0'), ('', ''), ('<b>&', '&lt;b&gt;&amp;')], ids=repr)
    @pytest.mark.parametrize('make', [oob_element, oob_update])
    def test_content(self, make, content, want):
        assert html(make('todos', content, 'beforeend'))==f'<div id="todos" hx-swap-oob="beforeend">{want}</div>'
        assert html(make('todos', content))==f'<div id="todos" hx-swap-oob="innerHTML">{want}</div>'

    @pytest.mark.parametrize('around, content',
        [(Tbody, Tr(Td('a'))), (Tr, Td('a')), (Select, Option('L')), (Span, 'x')])
    @pytest.mark.parametrize('make', [oob_element, oob_update])
    def test_element_type(self, make, around, content):
        "A `Div` around a `Tr`, `Td` or `Option` is destroyed by the browser's parser"
        tag,found = tags(make('x', content, 'beforeend', element_type=around))[0]
        assert tag==around('x').tag and found.items()>={'id': 'x', 'hx-swap-oob': 'beforeend'}.items()

    def test_morph(self):
        assert attrs(oob_swap(Form(Input(name='city'), id='form'), 'morph'))['hx-swap-oob']=='morph'
        assert attrs(oob_element('form', Input(name='city'), 'morph'))['hx-swap-oob']=='innerMorph'

    @pytest.mark.parametrize('make', [
        lambda: oob_swap(Li('no id')), lambda: oob_swap('<li>'), lambda: oob_swap(Li(id='x'), None),
        lambda: oob_swap(Li(id='x'), ''),
        lambda: oob_swap(Li('x'), 'beforeend:#todos', 'list'), lambda: oob_element('', 'x'),
        lambda: oob_update(None, 'x')])
    def test_errors(self, make):
        with pytest.raises(ValueError): make()


class TestAttributes:
    "`add_sse_attrs`, `create_sse_element`"

    def test_changes_and_returns_its_element(self):
        element = Div(id='news', hx_ext='preload')
        assert HTMXSSEConnector.add_sse_attrs(element, '/news') is element
        got = attrs(element)
        assert (got['sse-connect'], got['sse-swap'], got['id'])==('/news', 'message', 'news')
        assert got['hx-ext'].split(',')==['preload', 'sse'] and 'sse-close' not in got

    @pytest.mark.parametrize('kw, names', [
        (dict(), 'message'), (dict(swap_type='price'), 'price'), (dict(events='price'), 'price'),
        (dict(events=['price', 'volume']), 'price,volume'), (dict(events=('a', 'b', 'c')), 'a,b,c'),
        (dict(events='price, volume'), 'price,volume'),
        (dict(events=['price'], swap_type='message'), 'price'), (dict(events='a', swap_type='b'), 'a'),
        (dict(events=[], swap_type='price'), 'price')])
    def test_event_names(self, kw, names):
        "All of several; `events` beats `swap_type`"
        for element in (HTMXSSEConnector.add_sse_attrs(Div(), '/s', **kw), sse_element('/s', **kw)(Div)(),
                        HTMXSSEConnector.create_sse_element(endpoint='/s', **kw)):
            assert attrs(element)['sse-swap']==names

    def test_closing_event(self):
        "The one that the server sends where a stream has ended on purpose"
        for element in (HTMXSSEConnector.add_sse_attrs(Div(), '/s', auto_reconnect=False), sse_element('/s')(Div)(),
                        HTMXSSEConnector.create_sse_element(endpoint='/s', auto_reconnect=False),
                        HTMXSSEConnector.sse_status_element(7)):
            assert attrs(element)['sse-close']==CLOSE
        assert 'sse-close' not in attrs(sse_element('/s', auto_close=False)(Div)())

    def test_swap_style_has_its_own_keyword(self):
        for element in (HTMXSSEConnector.add_sse_attrs(Div(), '/s', swap='beforeend'),
                        sse_element('/s', swap='beforeend')(Div)(),
                        HTMXSSEConnector.create_sse_element(endpoint='/s', swap='beforeend')):
            assert (attrs(element)['hx-swap'], attrs(element)['sse-swap'])==('beforeend', 'message')

    def test_hidden_swaps_nothing(self):
        "Unless it is told to: what it hears may go to another element"
        hidden = HTMXSSEConnector.create_sse_element(endpoint='/s', hidden=True)
        assert 'hidden' in attrs(hidden) and attrs(hidden)['hx-swap']=='none'
        elsewhere = HTMXSSEConnector.create_sse_element(endpoint='/s', hidden=True, hx_target='#log',
            hx_swap='beforeend')
        assert (attrs(elsewhere)['hx-swap'], attrs(elsewhere)['hx-target'])==('beforeend', '#log')
        assert 'hx-swap' not in attrs(HTMXSSEConnector.create_sse_element(endpoint='/s', hidden=True, hx_target='#log'))

    def test_listens_to_an_outer_connection(self):
        "Without `endpoint`; it does not inherit the swap style of the element around it"
        price = HTMXSSEConnector.create_sse_element(Span, element_id='price', events='price', cls='big')
        assert tags(price)==[('span',
            {'id': 'price', 'class': 'big', 'hx-ext': 'sse', 'sse-swap': 'price', 'hx-swap': 'innerHTML'})]

    def test_route_functions(self):
        app = FastHTML(secret_key='contract')
        @app.route('/ticker')
        def ticker(): ...
        @app.route('/rooms/{room}')
        def listen(room:str): ...
        assert attrs(HTMXSSEConnector.add_sse_attrs(Div(), ticker))['sse-connect']=='/ticker'
        assert attrs(HTMXSSEConnector.create_sse_element(endpoint=listen.to(room='a')))['sse-connect']=='/rooms/a'
        for wrong in (listen, lambda: None, '', None):
            with pytest.raises(ValueError, match='endpoint'): HTMXSSEConnector.add_sse_attrs(Div(), wrong)
        with pytest.raises(ValueError, match='endpoint='): HTMXSSEConnector.create_sse_element(ticker)

    @pytest.mark.parametrize('kw', [dict(events=['a,b']), dict(events=7), dict(events=['a\nb']), dict(swap_type='')],
        ids=repr)
    def test_bad_names(self, kw):
        with pytest.raises(ValueError): HTMXSSEConnector.add_sse_attrs(Div(), '/s', **kw)

    def test_no_element(self):
        with pytest.raises(ValueError, match='element'): HTMXSSEConnector.add_sse_attrs('<div></div>', '/s')
        with pytest.raises(ValueError, match='element'): HTMXSSEConnector.create_sse_element('div', '/s')

    def test_endpoint_stays_in_its_attribute(self):
        url = '/s?q="><script>alert(1)</script>&a=\'b'
        assert tags(HTMXSSEConnector.create_sse_element(endpoint=url))[0][1]['sse-connect']==url
        assert len(tags(HTMXSSEConnector.create_sse_element(endpoint=url)))==1


class TestSSEElement:
    "The decorator of a function that returns an element"

    async def test_keeps_name_and_kind(self):
        @sse_element('/clock', events=['tick', 'alarm'])
        def clock(city):
            "Tells the time"
            return P('--:--', id=f'clock-{city}')
        @sse_element('/clock')
        async def later(city): return P('--:--', id=f'clock-{city}')
        assert (clock.__name__, clock.__doc__, later.__name__)==('clock', 'Tells the time', 'later')
        assert attrs(clock('rome'))['id']==attrs(await later(city='rome'))['id']=='clock-rome'
        assert attrs(clock('rome'))['sse-swap']=='tick,alarm'

    def test_objects_that_draw_themselves(self):
        class Card:
            def __ft__(self): return Div('card', id='card')
        assert attrs(sse_element('/s')(Card)())['sse-connect']=='/s'

    def test_wrong_arguments_show_at_once(self):
        for kw in (dict(endpoint=None), dict(endpoint='/s', events=7)):
            with pytest.raises(ValueError): sse_element(**kw)
        with pytest.raises(ValueError, match='element'): sse_element('/s')(lambda: 'no element')()


class TestJobs:
    "`sse_progress_element`, `sse_status_element`"

    @pytest.mark.parametrize('job_id, quoted', [
        ('j7', 'j7'), (7, '7'), ('a&b=c/d e', 'a%26b%3Dc%2Fd%20e'), ('{job_id}', '%7Bjob_id%7D'), ('ü', '%C3%BC'),
        ('"><b>', '%22%3E%3Cb%3E')])
    @pytest.mark.parametrize('kind', ['progress', 'status'])
    def test_job_ids(self, kind, job_id, quoted):
        "Quoted in the URL, and there alone: scripts and out-of-band elements find the element by the job's own id"
        make = getattr(HTMXSSEConnector, f'sse_{kind}_element')
        (tag,found), = tags(make(job_id))
        assert tag=='span' and found['sse-connect']==f'/stream_job_{kind}?job_id={quoted}'
        assert found['id']==f'{kind}-span-{job_id}'
        found = attrs(make(job_id, '/jobs/{job_id}/s', 'x-{job_id}', 'waiting'))
        assert (found['sse-connect'], found['id'])==(f'/jobs/{quoted}/s', f'x-{job_id}')

    def test_initial_content(self):
        element = HTMXSSEConnector.sse_progress_element(7, initial_content=P('waiting'))
        assert html(element).endswith('><p>waiting</p></span>')

    @pytest.mark.parametrize('bad', ['', 'half of a pair: \ud83d'], ids=ascii)
    def test_bad_ids(self, bad):
        with pytest.raises(ValueError, match='job_id'): HTMXSSEConnector.sse_status_element(bad)


HOSTILE = ['</script><img src=x onerror=alert(1)>', '"><script>alert(1)</script>', "'-alert(1)-'", '`${alert(1)}`',
    '<!--<script>', '\u2028alert(1)', '&quot;']


class TestMonitor:
    "`create_sse_monitor`, `create_sse_monitor_script`, `SSEMonitorConfig`"

    @pytest.mark.parametrize('inline', [True, False])
    @pytest.mark.parametrize('hostile', HOSTILE)
    def test_nothing_breaks_out_of_the_script(self, hostile, inline):
        def script(text, name): return create_sse_monitor(HTMXSSEConnector, SSEMonitorConfig(
            sse_element_id=name, status_element_id=name,
            status_indicators=dict(active=text, error=Span(text))), inline=inline)
        found,plain = (Tags(html(script(*o))) for o in ((hostile, ''.join(hostile.split())), ('fine', 'fine')))
        assert [tag for tag,_ in found.found]==['script'] and found.text==plain.text, 'settings are data, never code'

    def test_settings_reach_the_page(self):
        config = dict(sse_element_id='c', status_element_id='s', auto_reconnect=False, reconnect_delay=500, debug=True,
            heartbeat_timeout=9000)
        indicators = dict(active=HOSTILE[0], error=Span('down', cls='red'))
        for script in (create_sse_monitor(HTMXSSEConnector(), SSEMonitorConfig(**config, status_indicators=indicators)),
                       HTMXSSEConnector.create_sse_monitor_script(config | dict(status_indicators=indicators))):
            found = json.loads(attrs(script)['data-sse-monitor'])
            assert found.items()>=config.items()
            shown = found['status_indicators']
            assert (shown['active'], shown['error'])==(HOSTILE[0], '<span class="red">down</span>')
            assert {*shown}=={'active', 'reconnecting', 'disconnected', 'error'}, 'each state has one'

    @pytest.mark.parametrize('delay', [0, None, 1, 2.5])
    def test_delay_of_zero_is_one(self, delay): assert SSEMonitorConfig(reconnect_delay=delay).reconnect_delay==delay

    @pytest.mark.parametrize('wrong', [
        dict(sse_element_id=''), dict(status_element_id='a b'), dict(auto_reconnect='no'), dict(debug=1),
        dict(reconnect_delay=-1),
        dict(reconnect_delay=True), dict(heartbeat_timeout=0), dict(heartbeat_timeout='30s'),
        dict(heartbeat_timeout=float('nan')),
        dict(status_indicators=['live']), dict(status_indicators=dict(on='x')), dict(status_indicators=dict(active=7))],
        ids=repr)
    def test_wrong_settings(self, wrong):
        with pytest.raises(ValueError, match=[*wrong][0]): SSEMonitorConfig(**wrong)
        with pytest.raises(ValueError, match=[*wrong][0]): HTMXSSEConnector.create_sse_monitor_script(wrong)

    def test_unknown_settings(self):
        for wrong in (dict(colour='red'), ['debug'], None):
            with pytest.raises(ValueError): HTMXSSEConnector.create_sse_monitor_script(wrong)
        with pytest.raises(ValueError): create_sse_monitor(None, SSEMonitorConfig())
        with pytest.raises(ValueError): create_sse_monitor(HTMXSSEConnector, {})


def test_cleanup_script():
    "`beforeunload` would keep a page out of the browser's back/forward cache, or bring it back dead"
    (tag,_), = tags(script := cleanup_sse_on_unload())
    listens = [o for o in ('pagehide', 'pageshow', 'beforeunload', 'unload')
        if f"addEventListener('{o}'" in html(script)]
    assert tag=='script' and listens==['pagehide', 'pageshow']
