"An event loop that needs no time"
import asyncio
import selectors
from functools import partial, wraps


class Selector(selectors.DefaultSelector):
    """Does not wait for the next timer, but moves the clock there

    It waits for the threads of `run_in_executor`, which take no time by this clock; for those of anybody else up to `grace` seconds,
    each time before the clock is moved.
    """
    now, threads, grace = 0., 0, 0.

    def select(self, timeout=None):
        if timeout is None or self.threads: return super().select(timeout if timeout is None or timeout<=0 else None)
        if ready := super().select(min(self.grace, max(0, timeout))): return ready
        self.now += max(0, timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    "An event loop whose clock stands still while there is something to do, and then jumps to the next timer; `timers` are those to come"
    def __init__(self, grace=0.):
        self.clock, self.handles = Selector(), []
        self.clock.grace = grace
        super().__init__(self.clock)

    def time(self): return self.clock.now

    def call_at(self, when, callback, *args, **kw):
        handle = super().call_at(when, callback, *args, **kw)
        self.handles.append(handle)
        return handle

    @property
    def timers(self):
        "When each of them is due"
        self.handles = [o for o in self.handles if not o.cancelled() and o.when()>=self.time()]
        return sorted(o.when() for o in self.handles)

    def run_in_executor(self, executor, f, *args):
        def done(_): self.clock.threads -= 1
        self.clock.threads += 1
        future = super().run_in_executor(executor, f, *args)
        future.add_done_callback(done)
        return future


def timeless(test):
    "Have an async test run on such a loop; it waits for nothing outside of the loop but for threads, of which none takes long"
    @wraps(test)
    def run(*args, **kw):
        with asyncio.Runner(loop_factory=partial(Loop, .001)) as runner: runner.run(test(*args, **kw))
    return run
