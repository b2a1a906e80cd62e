"What the browser tests rest on"
import pytest
from browsers import each_browser, new_context, renderer


@each_browser
def test_a_direct_stream_fails_a_test(browser, site):
    "In any page of the context, unless the test names its reason"
    site.pages['p'] = lambda: ''
    def log(context, *reasons):
        page = context.new_page()
        page.goto(site.url('p'))
        for reason in reasons: page.evaluate('reason => console.debug(`[sse] direct: ${reason} /events`)', reason)
    with pytest.raises(AssertionError, match='not asked for'), new_context(browser) as context:
        context.direct.add('asked')
        log(context, 'asked', 'no ticket')
    with new_context(browser) as context:
        context.direct |= {'asked', 'no ticket'}
        log(context, 'asked', 'no ticket')


@each_browser
def test_a_tab_is_known_beside_a_busy_one(browser, site, tabs):
    site.pages['p'] = lambda: ''
    one,busy = [tabs.open(site.url('p')) for _ in range(2)]
    busy.evaluate('() => { setTimeout(() => { const end = performance.now() + 1000; while (performance.now() < end); }) }')
    beside = renderer(one)
    busy.evaluate('1')
    assert beside == renderer(one) != renderer(busy)
