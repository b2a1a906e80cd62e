"The client under htmx 2: connecting, swapping, ending, and the connections that a server sees"
import pytest
from fasthtml.common import P, Ul, to_xml

from cjm_fasthtml_sse.helpers import insert_htmx_sse_ext
from cjm_fasthtml_sse.htmx import HTMXSSEConnector

connect = HTMXSSEConnector.create_sse_element


def hidden(**kw): return connect(endpoint='/stream/events', element_id='sse', hidden=True, **kw)
def oob(*items, swap='beforeend', target='list'): return f'<div id="{target}" hx-swap-oob="{swap}">' + ''.join(f'<li id="{i}">{t}</li>' for i,t in items) + '</div>'
def texts(page, css='#list > li'): return page.locator(css).all_inner_texts()


@pytest.mark.parametrize('setup', ['setup_sse', 'insert_htmx_sse_ext', 'client before htmx'])
def test_out_of_band(page, make_site, until, setup):
    "A hidden element: its messages go where their ids say, and it stays empty itself"
    site = make_site(**({} if setup == 'setup_sse' else dict(setup=lambda app: insert_htmx_sse_ext(app.hdrs))))
    if setup == 'client before htmx': site.app.hdrs.sort(key=lambda h: 'data-sse-client' not in to_xml((h,)))
    site.pages['p'] = lambda: (hidden(), Ul(id='list'))
    page.goto(site.url('p'))
    until(site.count)
    site.send(f'data: {oob(("a", "A"))}\n\n')
    site.send(f'data: {oob(("b", "B"))}\n\n')
    page.wait_for_selector('#b')
    assert texts(page) == ['A', 'B']
    assert page.inner_html('#sse') == ''
    assert page.evaluate('cjmSSE.state') == 'active'


VECTORS = {
    'lines':    b'data: a\rdata: b\r\ndata: c\n\ndata: d\r\r',
    'bom':      b'\xef\xbb\xbfdata: a\n\n',
    'two-boms': b'\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n',
    'blanks':   b'data:  a\n\ndata:b\n\ndata\n\ndata:\n\n data: c\n\n',
    'ids':      b'id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\nid: x\0y\ndata: d\n\nid: 2\n\ndata: e\n\n',
    'fields':   b'event: e\n\ndata: a\n\nevent: e\ndata: b\n\nevent:\ndata: c\n\nunknown: 1\ndata: d\n\n: comment\ndata: e\n\n',
    'utf8':     'data: ok…😀\u2028x\x85\x0b\n\n'.encode() + b'data: \xff\xfe\n\n',
    'end':      b'data: a\n\ndata: never\n',
    'error':    b'event: error\ndata: a\n\n'}


@pytest.mark.parametrize('name', VECTORS)
def test_parses_as_the_browser_does(page, site, name):
    "The same events, ids and data as Chromium's own EventSource, on one and the same stream"
    site.pages |= {'p': lambda: P('x'), name: lambda: VECTORS[name] + b'data: END\n\n' if name != 'end' else b'data: a\n\n' + b'data: END\n\ndata: never\n'}
    page.goto(site.url('p'))
    got = page.evaluate("""name => {
        const read = source => new Promise(resolve => {
            const seen = [];
            for (const type of ['message', 'e', 'error']) source.addEventListener(type, e => {
                if (!(e instanceof MessageEvent)) return;
                if (e.data === 'END') { source.close(); return resolve(seen); }
                seen.push([e.type, e.data, e.lastEventId]);
            });
        });
        return Promise.all([read(new EventSource(`/raw/${name}`)), read(cjmSSE.connect(`/raw/${name}`, {}))]);
    }""", name)
    assert got[0] == got[1] and (got[0] or name == 'error')
