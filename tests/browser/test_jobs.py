"Tracked jobs in a page, which is nothing but `setup_progress`, the two elements, and `track`"
import threading

from fasthtml.common import Div
from handmade import HTMX4
from playwright.sync_api import expect

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.htmx import HTMXSSEConnector
from cjm_fasthtml_sse.progress import setup_progress, track

progress,status = HTMXSSEConnector.sse_progress_element,HTMXSSEConnector.sse_status_element
SEEN = """new MutationObserver(() => {
    const bar = document.querySelector('progress');
    if (bar && bar.position !== seen.at(-1)) seen.push(bar.position) })
    .observe(document, {childList: true, subtree: true}); window.seen = []"""


class Work(threading.Thread):
    "A job in a thread of its own, which does an item whenever it is told to"
    def __init__(self, manager, job_id, total):
        super().__init__(daemon=True)
        self.job,self.go = track(manager, range(total), job_id, throttle=0),threading.Semaphore(0)
        self.start()

    def run(self):
        for _ in self.job:
            if not self.go.acquire(timeout=150): break

    def done(self):
        self.go.release(self.job.total)
        self.join(30)


def test_bar_moves(page, make_site, until):
    """Of a job with an odd name, also in a tab that is opened late, or loaded when all is over. A new job of that name
    begins anew"""
    manager,job_id = SSEBroadcastManager(retry=100),'a/b:c d*é'
    site = make_site(lambda app: setup_progress(app, manager, authorise=True), HTMX4())
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
    def over(tab):
        expect(tab.get_by_role('status')).to_have_text('Completed')
        expect(tab.get_by_role('progressbar')).to_have_js_property('position', 1)
        tab.wait_for_function("cjmSSE.sources.every(source => source.state === 'disconnected')")
    work.done()
    for tab in page, late: over(tab)
    until(lambda: manager.connection_count == 0)
    seen = page.evaluate('seen')
    assert seen == sorted(seen) and {0, .2, .4, .6, 1} <= {*seen}
    late.reload()
    over(late)
    again = Work(manager, job_id, 2)
    late.reload()
    expect(late.get_by_role('status')).to_have_text('Running')
    again.done()
    over(late)
    assert not [t for k,t in page.console if k in ('warning', 'error') and 'Failed to load resource' not in t]
