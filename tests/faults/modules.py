"The six modules, pages, jobs"
from tests.faults import Fault

FAULTS: list[Fault] = [
    Fault('a long event type and a pattern with several stars hold up the server for seconds', 'engine/patterns.py',
        'test_dispatch_contract.py', (
        ('''"(?>[^:]*{'+' if''', '''"(?:[^:]*{'+' if'''),
        ("f'(?>{skipped}{found})'", "f'(?:{skipped}{found})'"))),
    Fault('priority counts only among handlers of one pattern', 'engine/patterns.py', 'test_dispatch_contract.py', (
        ('for _,_,f in sorted(found)]', 'for _,_,f in found]'),
        ('self._keys[key].append((-priority, next(self._count), f))',
         'self._keys[key].append((-priority, next(self._count), f))\n'
         '        self._keys[key].sort(key=lambda o: o[0])'))),
    Fault('a dispatcher that listens to all broadcasts counts an error for each', 'manager/hooks.py',
        'test_dispatch_contract.py', (
        (' or isinstance(res, list)', ''),)),
    Fault('a preprocessor of the updater that gives 0 or an empty text is ignored', 'updater.py',
        'test_updater_contract.py', (
        ('if (new := f(event_type, data)) is not None: data = new', 'data = f(event_type, data) or data'),)),
    Fault('the element of a job with an odd id is found by no script and no out-of-band element', 'htmx.py',
        'test_elements_contract.py', (
        ("str(element_id_template).replace('{job_id}', str(job_id))", "str(element_id_template).replace('{job_id}', quoted)"),)),
    Fault('an indicator of the monitor that holds `</script>` runs as code in the page', 'htmx.py',
        'test_elements_contract.py', (
        ("return Script(_js('watchdog', 'native', 'monitor'), ",
         "return Script(f'const sseMonitor = {data};\\n' + _js('watchdog', 'native', 'monitor'), "),)),
    Fault('a `?v=` behind htmx hides it, so what is inserted comes too early or too late', 'headers.py',
        'test_headers_contract.py', (
        ("_HTMX.search(re.split(r'[?#]', url)[0])", '_HTMX.search(url)'),)),
    Fault('text with a line separator arrives torn in two lines', 'engine/wire.py', 'test_stream_format.py', (
        ("_utf8('data', data).replace('\\n', '\\ndata: ')",
        "'\\ndata: '.join(_utf8('data', data).splitlines() or [''])"),)),
    Fault('a log-in page as the answer of `authorise` lets strangers into the dashboard', 'engine/access.py',
        'test_who_may_listen.py', (
        ('if answer is True: return None', 'if answer and not isinstance(answer, Response): return None'),)),
    Fault('what is broadcast while a page is drawn never comes to it', 'htmx.py', 'test_page_and_stream.py', (
        ("return escape(' '.join(add_other_epochs(self._ids, ids)), quote=False)",
         "from .engine.messages import _buffers,epoch_of\n"
         "        newest = {epoch_of(o.cursor): o.cursor for o in _buffers}\n"
         "        return escape(' '.join(newest.get(epoch_of(o), o) for o in ids), quote=False)"),)),
    Fault('a page of an app with two managers is told of a gap that there is not', 'engine/messages.py',
        'test_page_and_stream.py', (
        ("next((o for o in ids if epoch_of(o) not in known), '')", "next(iter(ids), '')"),)),
    Fault('a job that a restart has lost is shown as waiting for ever, to a page that has heard nothing so far',
        'progress.py', 'test_job_streams.py', (
        ('lost = bool(id := seen or log.id_for_page(page))', 'lost = bool(id := seen)'),)),
    Fault('plain middleware that only looks on keeps events from their handlers', 'dispatcher.py',
        'test_dispatch_contract.py', (
        ('for call in calls: await call', 'for call in calls: call.close()'),)),
    Fault('half of a surrogate pair in the state ends every new stream', 'engine/render.py', 'test_snapshots.py', (
        ('if is_element(elements): return replace_surrogates(str(to_xml((elements,), indent=False)))',
         'if is_element(elements): return str(to_xml((elements,), indent=False))'),)),
    Fault('what a background task draws goes on where the page was that began it, long ago', 'setup.py',
        'test_page_and_stream.py', (
        ('if not open_body or begins and is_stream(message): cursors.clear()',
        'if begins and is_stream(message): cursors.clear()'),)),
    Fault('an element that comes through a stream listens to the past again, or misses what is new', 'engine/render.py',
        'test_page_and_stream.py', (
        ("context,began = written_at(getattr(message, 'id', None))", 'context,began = written_at(None)'),)),
    Fault('a hidden element swaps nothing though the app has named where to', 'htmx.py', 'test_elements_contract.py', (
        ("if not {'hx_swap', 'hx-swap', 'hx_target', 'hx-target'} & {*kwargs}: swap = swap or 'none'",
        "swap = swap or 'none'"),)),
    Fault('within another app, whose route for files takes it, the client is not found', 'headers.py',
        'test_headers_contract.py', (
        ("f'{name}-{sha256(o.encode()).hexdigest()[:16]}': o", "f'{name}-{sha256(o.encode()).hexdigest()[:16]}.js': o"),
        )),
    Fault('a queue that has ended says so once, and is silent for ever to whoever asks again', 'engine/queues.py',
        'test_manager_contract.py', (
        ("        self.ended = False      # So that the mark is put in again, for the next call\n        self.end()\n", ''),)),
    Fault('tracked work stands still while the backend is away', 'job.py', 'test_tracked_jobs.py', (
        ('self.due = max(self.due, end+_BACK_OFF*(end-start))', 'pass'),)),
    Fault('the next run of a job begins before the end of the last one was told', 'job.py', 'test_tracked_jobs.py',
        (
        ("if (old := running.get(self.job.id)) is not None: self._sent = old._sent", 'pass'),)),
    Fault('a thread that looks for a job finds none while a report of it comes in', 'progress.py',
        'test_job_streams.py', (
        ("self._reports[report['id']] = report  # There at any moment, as other threads may look\n"
         "        self._reports.move_to_end(report['id'])",
         "self._reports.pop(report['id'], None)\n        self._reports[report['id']] = report"),)),
    Fault('the stream of a job that ends while it is being opened stays open for ever', 'progress.py',
        'test_job_streams.py', (
        ("return FinalSnapshot(self.draw(report)) if report['state'] in ENDS else self.draw(report)",
        'return self.draw(report)'),)),
    Fault('the style of the dashboard is not found where the app serves files', 'dashboard.py',
        'test_dashboard_shows.py', (
        ('app.router.routes.insert(0, Route(board.path+_style_name(), style',
        'app.router.routes.append(Route(board.path+_style_name(), style'),)),
    Fault('a stream whose manager the app does not know says nothing', 'engine/hints.py', 'test_silence_is_mended.py', (
        ("if manager in scope.get('sse_managers', ()): return", "if 'sse_managers' in scope: return"),)),
    Fault('the log fills with one and the same hint', 'engine/hints.py', 'test_silence_is_mended.py', (
        ('    _given.add(place)\n', ''),)),
]
