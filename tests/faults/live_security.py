"Who may follow which live elements"
from tests.faults import Fault

ENDPOINT, SUITE = 'live/endpoint.py', 'test_live_security.py'

FAULTS: list[Fault] = [
    Fault('whoever copies what a page has follows its live elements', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, *place, view)", "return self._sign('live', *place, view)"),)),
    Fault('one signature is good for all arguments', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, *place, view)", "return self._sign('live', visitor_id, *place, view.partition('[')[0])"),)),
    Fault('what one manager has drawn for a visitor opens the elements of another one', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, *place, view)", "return self._sign('live', visitor_id, place.root, view)"),)),
    Fault('what an app has drawn for a visitor opens the elements of a mounted one', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, *place, view)", "return self._sign('live', visitor_id, place.manager, view)"),)),
    Fault('a slot of one manager is one of another', 'visitor.py', SUITE, (
        ("return self._sign('live slot', manager, outer, view)", "return self._sign('live slot', outer, view)"),)),
    Fault('two managers of one app have one name', 'visitor.py', SUITE, (
        ('if len(managers)>1 and len(live_managers(managers, manager.name))>1: raise', 'if False: raise'),)),
    Fault('where nobody knows the visitor, an empty signature is a good one', ENDPOINT, SUITE, (
        ("wanted.signature.encode('utf-8', 'surrogatepass')) and bool(good)",
         "wanted.signature.encode('utf-8', 'surrogatepass'))"),)),
    Fault('the signature of a slot is good without the element around it', ENDPOINT, SUITE, (
        ('reached = slots.get(None, [])', 'reached = [o.text for o in wanted if o.text in good]'),
        ('for text in reached: reached += slots.get(text, ())', 'for text in (): reached += slots.get(text, ())'))),
    Fault('whom `authorise` denies an element follows the slots in it', ENDPOINT, SUITE, (
        ('followed = [known[o] for o in within_reach(wanted, known)]', 'followed = [*known.values()]'),)),
    Fault('`authorise` of a live element lets in with anything but False', ENDPOINT, SUITE, (
        ('        return answer is True\n', '        return bool(answer)\n'),)),
    Fault('`authorise` of a live element that fails lets in', ENDPOINT, SUITE, (
        ('failed: it is refused\', view.element.name)\n            return False',
         'failed: it is refused\', view.element.name)\n            return True'),)),
    Fault('`authorise` of a live element is asked but once', ENDPOINT, SUITE, (
        ('again = (guard, request, RECHECK) if guard.views else None', 'again = None'),)),
    Fault('`authorise` is asked for strangers, who learn by it which elements there are', ENDPOINT, SUITE, (
        ('for text in signed:', 'for text in [o.text for o in wanted]:'),)),
    Fault('a body of any length is read to its end', ENDPOINT, SUITE, (
        ('read_body(receive, MAX_BODY_BYTES)', 'read_body(receive, 1<<40)'),)),
    Fault('a form of another site opens a stream', ENDPOINT, SUITE, (
        ("!=b'application/json': raise HTTPException(415", "==b'no/kind': raise HTTPException(415"),)),
    Fault('deep JSON is an error of the server', ENDPOINT, SUITE, (
        ('except (ValueError, RecursionError): data = None', 'except ValueError: data = None'),)),
    Fault('half of a surrogate pair in a view is an error of the server', ENDPOINT, SUITE, (
        ('try: return bool(o[0].encode())', "try: return bool(o[0].encode('utf-8', 'surrogatepass'))"),)),
    Fault('a view is followed for ever by a browser that has gone', ENDPOINT, SUITE, (
        ('for o in views: o.unfollow(conn)', 'pass'),)),
    Fault('the channel of live elements keeps its request', ENDPOINT, SUITE, (
        ('await super().__call__(scope, self._receive, send)', 'await super().__call__(scope, receive, send)'),)),
    Fault('a first visit gets signatures for a browser that it is not', 'visitor.py', SUITE, (
        ('if visit.new_browser: headers.append(_cookie(visit))', 'if visit.new_browser and not visit.is_signed: headers.append(_cookie(visit))'),)),
    Fault('a page for many brings one browser id to all of them', 'visitor.py', SUITE, (
        ('if _may_be_cached(message): return headers', 'if _may_be_cached(message) and not visit.new_browser: return headers'),)),
    Fault('a cache keeps the signatures of a page', 'visitor.py', SUITE, (
        ('headers = _no_store(message) if visit.is_signed else []', 'headers = []'),)),
    Fault('each page gets a cookie, with live elements or without', 'visitor.py', SUITE, (
        ('if visit.new_browser: headers.append(_cookie(visit))', 'headers.append(_cookie(visit))'),)),
    Fault('live elements of a mounted app are looked for in the app around it', 'visitor.py', SUITE, (
        ("return '' if place==(self.root, MAIN) else", "return '' if place.manager==MAIN else"),)),
    Fault('live elements of a second manager are looked for with the first', 'visitor.py', SUITE, (
        ("+('' if self.manager==MAIN else f'?manager={self.manager}')", ''),)),
    Fault('a user with live elements alone is not there', ENDPOINT, SUITE, (
        ("manager._connection_hooks,visit.visitor.user", "manager._connection_hooks,None"),)),
    Fault('live elements know no limit of connections', ENDPOINT, SUITE, (
        ('refusal, manager._begin, opened', 'lambda: None, manager._begin, opened'),)),
    Fault('who may read the newest stream of a user reads the older ones, too', 'engine/access.py', 'test_rights_over_time.py', (
        ('class Recheck:\n', '_newest: dict = {}\n\nclass Recheck:\n'),
        ('        self.task: Any = None  # While', '        _newest[conn.user] = request\n        self.task: Any = None  # While'),
        ('call_again(recheck.authorise, recheck.request)', 'call_again(recheck.authorise, _newest[recheck.conn.user])'))),
    Fault('a stream that may be read no more ends all streams of its user', 'engine/access.py', 'test_rights_over_time.py', (
        ("        else: recheck.end()\n", "        else: self._hub.disconnect(recheck.conn.user)\n"),)),
    Fault('a deploy that swaps two parameters shows what is of another user', 'live/element.py', 'test_tried_and_refused.py', (
        ('({",".join(self.parameters.names)})', '()'),)),
    Fault('programs with one key take signatures of each other', 'live/element.py', 'test_tried_and_refused.py', (
        (' {_module_name(unwrap(function))}\'', '\''),)),
    Fault('a manager of two apps is followed past the checks of the one that has drawn it', 'visitor.py', 'test_tried_and_refused.py', (
        ("for root,managers in reversed(scope.get('sse.apps', ())):", "for root,managers in scope.get('sse.apps', ()):"),)),
    Fault('who may follow nothing takes places of those who may', ENDPOINT, 'test_tried_and_refused.py', (
        ('        if not followed: return _refusal(wanted)\n', ''),)),
    Fault('an element with `authorise` is shown to all in one that has none', 'live/element.py', 'test_tried_and_refused.py', (
        ('if view.element.authorise is not None and not has_rule: raise', 'if False: raise'),)),
    Fault('a channel that waited opens behind the end of its user', 'setup.py', 'test_tried_and_refused.py', (
        ("| scope.get('sse.began', {})", ''),)),
    Fault('`disconnect` ends nothing where the backend does not answer', 'core.py', 'test_tried_and_refused.py', (
        ('        self._hub.disconnect(user)\n        raise', '        raise'),)),
    Fault('`authorise` knows nothing of what a middleware has set', 'engine/access.py', 'test_tried_and_refused.py', (
        ('context=recheck.context.copy()', 'context=Context()'),)),
    Fault('what `authorise` sets for one stream is there for its next call', 'engine/access.py', 'test_tried_and_refused.py', (
        ('context=recheck.context.copy()', 'context=recheck.context'),)),
    Fault('slow calls for one user hold up the others', 'engine/access.py', 'test_tried_and_refused.py', (
        ('if now-began<SLOW_SECS: self._in_threads += recheck.uses_thread', 'self._in_threads += recheck.uses_thread\n            if now-began<SLOW_SECS: pass'),
        ('SLOW_SECS = 1. ', 'SLOW_SECS = 1e9 '))),
    Fault('a stranger whom `visitor` does not know is all strangers', 'visitor.py', 'test_tried_and_refused.py', (
        ("value is None or value is False or value==''", "value is None"),)),
    Fault('a ticket is for what a middleware has made of the path', 'visitor.py', 'test_tried_and_refused.py', (
        ('dict(path=self._path, root_path=self.root)', "dict(path=self.scope['path'], root_path=self.root)"),)),
    Fault('`disconnect` of a user who is a row ends nothing over SQLite', 'engine/users.py', 'test_tried_again.py', (
        ('json.dumps(value if carried is None else carried, sort_keys', 'json.dumps(value, sort_keys'),)),
    Fault('two scripts with one key are one program', 'live/element.py', 'test_tried_again.py', (
        ("return Path(path).stem if name=='__main__' and path else name", 'return name'),)),
    Fault('a stream of a mounted app opens behind the end of its user', 'setup.py', 'test_tried_again.py', (
        ("moments() | scope.get('sse.began', {})", "moments()"),)),
    Fault('the managers of mounted apps are opened by their first streams', 'setup.py', 'test_tried_again.py', (
        ('for o in (self.managers, *self.mounted()): await o.open()', 'for o in (self.managers,): await o.open()'),)),
    Fault('calls of `authorise` that hang hold up all plain routes', 'engine/access.py', 'test_tried_again.py', (
        ('limiter=limiter or _opening_limiter())', 'limiter=None)'),)),
    Fault('who follows an element goes on when it has `authorise` now', 'live/views.py', 'test_tried_again.py', (
        ('if former is not None and (element.authorise is not None or', 'if former is not None and (False or'),)),
]
