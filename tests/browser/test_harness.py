"What the browser tests rest on"
import pytest
from browsers import each_browser, new_context
from playwright.sync_api import Error


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
