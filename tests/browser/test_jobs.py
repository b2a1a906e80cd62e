"Tracked jobs in a page, which is nothing but `setup_progress`, the two elements, and `track`"
import threading

import pytest
from fasthtml.common import Button, Div, Span
from handmade import HTMX2, HTMX4
from playwright.sync_api import expect

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.progress import oob_progress, oob_status, setup_progress, track
from cjm_fasthtml_sse.updater import SSEElementUpdater

progress,status = HTMXSSEConnector.sse_progress_element,HTMXSSEConnector.sse_status_element
SEEN = """new MutationObserver(() => {
    const bar = document.querySelector('progress');
    if (bar && bar.position !== seen.at(-1)) seen.push(bar.position) })
    .observe(document, {childList: true, subtree: true}); window.seen = []"""


@pytest.fixture
def manager(): return SSEBroadcastManager(retry=100)


@pytest.fixture
def site(request, make_site, page, manager):
    "Under htmx 2, or what the test asks for"
    def setup(app): app.jobs = setup_progress(app, manager, authorise=True)
    yield make_site(setup, getattr(request, 'param', HTMX2)())
    assert not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]


class Work(threading.Thread):
    "A job in a thread of its own, which does an item whenever it is told to"
    def __init__(self, manager, job_id, total):
        super().__init__(daemon=True)
        self.job,self.go = track(manager, range(total), job_id, throttle=0),threading.Semaphore(0)
        self.start()

    def run(self):
        for _ in self.job:
            if not self.go.acquire(timeout=30): break

    def done(self):
        self.go.release(self.job.total)
        self.join(10)


@pytest.mark.parametrize('site, job_id', [(HTMX2, 'j7'), (HTMX4, 'a/b:c d*é')], indirect=['site'])
def test_a_bar_that_moves(page, site, manager, until, job_id):
    site.pages['p'] = lambda: Div(progress(job_id), status(job_id, role='status'), id='all')
    page.add_init_script(SEEN)
    page.goto(site.url('p'))
    until(lambda: manager.connection_count == 2)  # Before there is a job
    work = Work(manager, job_id, 5)
    expect(page.get_by_role('status')).to_have_text('Running')
    for n in range(4):
        expect(page.locator('#all')).to_contain_text(f'{n} of 5')
        if n < 3: work.go.release()
    late = page.context.new_page()
    late.goto(site.url('p'))
    for tab in page, late:
        bar = tab.get_by_role('progressbar', name=f'Job {job_id}')
        expect(bar).to_have_js_property('value', 3)
        assert '3 of 5' in bar.get_attribute('aria-valuetext')
    work.done()
    for tab in page, late:
        expect(tab.get_by_role('status')).to_have_text('Completed')
        expect(tab.get_by_role('progressbar')).to_have_js_property('position', 1)
        tab.wait_for_function("cjmSSE.sources.every(source => source.state === 'disconnected')")
    until(lambda: manager.connection_count == 0)
    seen = page.evaluate('seen')
    assert seen == sorted(seen) and {0, .2, .4, .6, 1} <= {*seen}

    late.reload()  # Everything is over
    expect(late.get_by_role('status')).to_have_text('Completed')
    late.wait_for_function("cjmSSE.sources.every(source => source.state === 'disconnected')")
    assert manager.connection_count == 0

    again = Work(manager, job_id, 2)
    late.reload()
    expect(late.get_by_role('status')).to_have_text('Running')
    again.done()
    expect(late.get_by_role('status')).to_have_text('Completed')
    late.close()


def test_a_job_started_anew_by_a_button_of_the_page(page, site, manager, until):
    works = []
    def start():
        works.append(Work(manager, 'j', 1))
        return Div(progress('j'), status('j'))
    site.app.get('/start')(start)
    site.pages['p'] = lambda: Div(Button('Start', hx_get='/start', hx_target='#job'), Div(id='job'))
    page.goto(site.url('p'))
    for n in range(3):
        page.get_by_role('button').click()
        expect(page.locator('#job')).to_contain_text('Running')
        works[n].done()
        expect(page.locator('#job')).to_contain_text('Completed')
        until(lambda: manager.connection_count == 0)


def test_one_stream_for_all_jobs(page, site, manager, until):
    ids,updater = ['j', 'a/b', 'ü:*'],SSEElementUpdater()
    for f in oob_progress, oob_status: updater.register_handler('job:*:*', f)
    def snapshot(): return [f(o) for o in site.app.jobs.values() for f in (oob_progress, oob_status)]
    def events(req): return manager.stream(req, render=updater, snapshot=snapshot)
    site.app.get('/events')(events)
    def places(i): return Div(*[Span(id=make(i).attrs['id']) for make in (progress, status)], cls='job')
    site.pages['p'] = lambda: Div(HTMXSSEConnector.create_sse_element(endpoint='/events', hidden=True), *map(places, ids))
    works = [Work(manager, i, 3) for i in ids]
    until(lambda: len(site.app.jobs) == 3)
    page.goto(site.url('p'))
    for i in range(3): expect(page.locator('.job').nth(i)).to_contain_text('0 of 3')
    works[1].go.release()
    expect(page.locator('.job').nth(1)).to_contain_text('1 of 3')
    for w in works: w.done()
    for i in range(3): expect(page.locator('.job').nth(i)).to_contain_text('Completed')
    assert manager.connection_count == 1
