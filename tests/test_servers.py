"The README's first app, in a real uvicorn process"
import asyncio
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from tests.contract.servers import OTHER_APPS, Stream, free_port, running
from tests.contract.support import eventually
from tests.live_tabs import LiveTab, client

README = (Path(__file__).parents[1]/'README.md').read_text()


@asynccontextmanager
async def opened(http, n):
    "Tabs that are open until the block ends"
    await http.get('/')  # The browser gets its cookie
    tabs = [LiveTab(http, '/', 'todo_list', '.+') for _ in range(n)]
    tasks = [asyncio.create_task(o.live()) for o in tabs]
    def show(*titles): return eventually(lambda: all(o.root and o.texts('li') == [*titles] for o in tabs), lambda: [o.root and o.texts('li') for o in tabs] + [o.exception() for o in tasks if o.done()])
    try: yield show
    finally:
        for t in tasks: t.cancel()
        await asyncio.wait(tasks)


async def test_the_first_app_runs_as_it_stands(tmp_path):
    "Two tabs, which stay open when the server is restarted; and the messages that the README adds"
    lines = (OTHER_APPS/'readme.py').read_text().split('\n', 1)[1].strip()
    assert lines in README, 'README.md shows other lines than this test runs'
    def server(port): return running([sys.executable, 'main.py'], tmp_path/'log', port=port, env={'PORT': str(port)}, cwd=tmp_path)
    (tmp_path/'main.py').write_text(lines)
    port = free_port()
    with server(port) as one:
        async with client(one) as http, opened(http, 2) as show:
            await show()
            await http.post('/add', data=dict(title='tea'))
            await show('tea')
            assert 'tea</li>' in (await http.get('/')).text
            one.signal(signal.SIGINT)
            await asyncio.to_thread(one.ends)
            _, messages, *_ = re.findall('```python\n(.*?)```', README, re.DOTALL)
            (tmp_path/'main.py').write_text(lines.replace('\nserve()', f'{messages}\nserve()').replace(
                "sse.changed('todos')", "sse.changed('todos'); sse.broadcast('todo:added', title)"))
            with server(port) as two, Stream(two, '/events') as toasts:
                await show()
                await http.post('/add', data=dict(title='milk'))
                await show('milk')
                await asyncio.to_thread(toasts.says, 'milk was added')
                two.signal(signal.SIGINT)
                await asyncio.to_thread(two.ends)
    assert 'Traceback' not in one.output
