"An event loop that needs no time"
import asyncio
from functools import wraps


class Loop(asyncio.SelectorEventLoop):
    "An event loop whose clock stands still while there is something to do, and then jumps to the next timer"
    now = 0.
    def time(self): return self.now
    def _run_once(self):
        # The first of them may be cancelled: then asyncio would wait for the second one, in real time
        due = [] if self._ready else [o.when() for o in self._scheduled if not o.cancelled()]
        if due: self.now = max(self.now, min(due))
        super()._run_once()


def timeless(test):
    "Have an async test run on such a loop; it waits for nothing outside of the loop"
    @wraps(test)
    def run(*args, **kw):
        with asyncio.Runner(loop_factory=Loop) as runner: runner.run(test(*args, **kw))
    return run
