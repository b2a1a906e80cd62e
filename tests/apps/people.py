"The recipe for who is online, where its processes share a Redis if `REDIS` names one"
import os

from fasthtml.common import Span, fast_app

from cjm_fasthtml_sse.core import SSEBroadcastManager
from cjm_fasthtml_sse.helpers import oob_swap, setup_sse
from cjm_fasthtml_sse.updater import SSEElementUpdater

app, rt = fast_app()
sse, updater = SSEBroadcastManager(backend=os.environ.get('REDIS')), SSEElementUpdater()
setup_sse(app, sse)

here = {}
def people(): return Span(f'{len(here)} here', id='people')

@sse.on_presence
async def came_or_went(users):
    here.clear()
    here.update(users)
    await sse.broadcast('people:changed', {}, key='people')

@updater.register('people:changed')
def changed(data): return oob_swap(people())

@rt
def events(req, who: str): return sse.stream(req, render=updater, snapshot=lambda: oob_swap(people()), user=who)
