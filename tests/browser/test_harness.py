"What the browser tests rest on"
import os

import pytest
from playwright.sync_api import Error

from bidi import Firefox
from browsers import crash, each_browser, new_context, renderer, stopped


@each_browser
def test_a_direct_stream_fails_a_test(browser, site):
    "In any page of the context, unless the test names its reason"
    site.pages['p'] = lambda: ''
    def log(context, *reasons):
        for reason in reasons:
            page = context.new_page()
            page.goto(site.url('p'))
            page.evaluate('reason => console.debug(`[sse] direct: ${reason} /events`)', reason)
    with pytest.raises(AssertionError, match='not asked for'), new_context(browser) as context:
        context.direct.add('asked')
        log(context, 'asked', 'no ticket')
    with new_context(browser) as context:
        context.direct |= {'asked', 'no ticket'}
        log(context, 'asked', 'no ticket')


@each_browser
def test_pages(page, site, until):
    "What scripts give, what goes wrong in a page, and Back"
    site.pages['p'] = lambda: 'here'
    site.pages['q'] = lambda: 'there'
    page.context.add_init_script('window.first = document.readyState')
    page.goto(site.url('p'), wait_until='commit')
    page.wait_for_function("([a, b]) => document.body?.innerText.trim() === a + b", arg=['he', 're'])
    assert page.evaluate('[first, {a: 1.5}, null, undefined]') == ['loading', {'a': 1.5}, None, None]
    assert page.evaluate('async n => { await 0; return n + 1 }', 1) == 2
    with pytest.raises(Error, match='nowhere'): page.evaluate('nowhere')
    with pytest.raises(Error): page.wait_for_function('false', timeout=100)
    page.evaluate("() => { window.kept = 1; setTimeout(() => { console.warn('mind'); throw Error('gone wrong') }) }")
    until(lambda: page.errors and ('warning', 'mind') in page.console)
    assert 'gone wrong' in page.errors[0]
    page.goto(site.url('q'))
    page.go_back(wait_until='commit')
    page.wait_for_function("document.body.innerText.trim() === 'here'")
    assert page.evaluate('kept') == 1
    page.reload()
    assert page.evaluate('typeof kept') == 'undefined'
    page.errors.clear()


@each_browser
def test_processes_of_tabs(page, site):
    "One stands still, one dies, the third goes on"
    site.pages['p'] = lambda: 'here'
    pages = [page.context.new_page() for _ in range(3)]
    for p in pages: p.goto(site.url('p'))
    pids = [renderer(p) for p in pages]
    assert len({*pids}) == 3
    with stopped(pages[0]):
        crash(pages[1])
        assert not os.path.exists(f'/proc/{pids[1]}/fd/0')
        assert pages[2].evaluate('1') == 1
    assert pages[0].evaluate('1') == 1


def test_hidden_tabs(browsers):
    "Firefox hides the tabs behind the one that it shows, where Chromium without a window hides none"
    with new_context(browsers('firefox')) as context:
        pages = [context.new_page(), context.new_page(hidden=True)]
        assert [p.evaluate('document.hidden') for p in pages] == [False, True]
        pages[1].bring_to_front()
        pages[1].wait_for_function('!document.hidden')


def test_firefox_is_missing(monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(AssertionError, match='apt-get install firefox-esr'): Firefox()
