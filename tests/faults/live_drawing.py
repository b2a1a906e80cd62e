"When live elements are drawn, in what context, and who gets the drawing"
from tests.faults import Fault

DRAWING, ELEMENT, UPDATES, VIEW, VIEWS = (f'live/{o}.py' for o in ('drawing', 'element', 'updates', 'view', 'views'))
SUITE = 'test_live_elements.py'

FAULTS: list[Fault] = [
    Fault('a reload shows what was minutes ago', VIEW, SUITE, (
        ('FRESH_SECS = 1. ', 'FRESH_SECS = 300. '),)),
    Fault('who has written at one worker sees an older state at another one', ELEMENT, 'test_live_races.py', (
        ("if (look := getattr(self.manager._backend, 'has_news', None)) is None: return False", 'return False'),)),
    Fault('each page draws a live element anew', VIEW, SUITE, (
        ('FRESH_SECS = 1. ', 'FRESH_SECS = -1. '),)),
    Fault('a hundred pages in threads draw one after the other', VIEW, SUITE, (
        ('if view.is_fresh() and is_good(): return view.newest', 'pass'),
        ('return view.newest if is_new and view.is_kept else self._draw()', 'return self._draw()'))),
    Fault('everybody sees the name of the first visitor', DRAWING, SUITE, (
        ('context,scope = written_at(cursor),', "context,scope = __import__('contextvars').copy_context(),"),)),
    Fault('each event is a drawing of its own, however long that takes', UPDATES, SUITE, (
        ('if self.view.followers and (self._task is None or self._task.done()):', 'if self.view.followers:'),)),
    Fault('an event before its change leaves the old drawing', UPDATES, SUITE, (
        ('if self.view.element.interval is None: self._draw_in(FOLLOW_UP_SECS)', 'pass'),)),
    Fault('`throttle` is ignored', UPDATES, SUITE, (
        ('view.newest.began+element.throttle-monotonic()', 'view.newest.began-monotonic()'),)),
    Fault('`interval` draws once', UPDATES, SUITE, (
        ('if element.interval is not None: self._draw_in(element.interval)\n        elif', 'if'),)),
    Fault('a live element that nobody follows is drawn for ever', UPDATES, SUITE, (
        ("for o in (self._timer, self._task):", 'for o in ():'),
        ('if not self.view.followers: return', 'pass'), ('if self.view.followers and (', 'if ('),
        ('while view.followers:', 'while True:'))),
    Fault('a drawing that broadcasts is drawn again because of that', VIEWS, SUITE, (
        ('if v.element.name!=live and v.element', 'if v.element'),)),
    Fault('a change without an event reaches those who load the page, and no others', VIEW, SUITE, (
        ('self._updates.note_drawing(drawing)', 'pass'),)),
    Fault('each change sends the whole drawing', UPDATES, SUITE, (
        ('if last is not None: return new.changes_since(last)', 'pass'),)),
    Fault('what is in a slot is sent with the drawing around it', DRAWING, SUITE, (
        ('self.version = version_of(text)', 'self.version = version_of(html)'),)),
    Fault('a view listens to the events of all by an argument with a star', 'live/arguments.py', SUITE, (
        ('segment(values[m[1]])', 'str(values[m[1]])'),)),
    Fault('two copies in a page have one id', ELEMENT, SUITE, (
        ('id = visit.take_id(self._id())', 'id = self._id()'),)),
    Fault('A page with `@sse.live` above `@rt` is not live, and nothing says so', ELEMENT, SUITE, (
        ("if hasattr(function, '__routename__'):", "if hasattr(function, '__no_route__'):"),)),
    Fault('A missing `await` before `fresh` writes an object into the page', ELEMENT, SUITE, (
        ("    def __html__(self): raise TypeError(f'{self._place or", "    def __html__(self): return object.__repr__(self) or TypeError(f'{self._place or"),)),
    Fault('`fresh` in a plain route draws nothing', ELEMENT, SUITE, (
        ("        if running_loop() is not None: return PendingElement(view, f'{self.name}{call}')\n", "        return PendingElement(view, f'{self.name}{call}')\n"),)),
    Fault('A page with more names and arguments than a request may have is sent, and none of it is live', DRAWING, SUITE, (
        ('if self._totals[url]>MAX_LIST_BYTES: raise', 'if self._totals[url]<0: raise'),)),
    Fault('What stands within other live elements is not counted where a page lists them', DRAWING, SUITE, (
        ('            if o.newest is not None: self.add(url, o, o.newest, view.listed_bytes)', '            pass'),)),
]
