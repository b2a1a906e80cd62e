"Who may follow which live elements"
from tests.faults import Fault

ENDPOINT, SUITE = 'live/endpoint.py', 'test_live_security.py'

FAULTS: list[Fault] = [
    Fault('whoever copies what a page has follows its live elements', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, view)", "return self._sign('live', '', view)"),)),
    Fault('one signature is good for all arguments', 'visitor.py', SUITE, (
        ("return self._sign('live', visitor_id, view)", "return self._sign('live', visitor_id, view.partition('[')[0])"),)),
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
        ('again = (guard.agrees, request, RECHECK) if guard.views else None', 'again = None'),)),
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
        ("return '' if root==self.root and not i else", "return '' if not i else"),)),
    Fault('live elements of a second manager are looked for with the first', 'visitor.py', SUITE, (
        ("+f'?manager={i}'*(i>0)", ''), ('if root==self.root and not i else', 'if root==self.root else'))),
    Fault('a user with live elements alone is not there', ENDPOINT, SUITE, (
        ("manager._connection_hooks,visit.visitor.user", "manager._connection_hooks,None"),)),
    Fault('live elements know no limit of connections', ENDPOINT, SUITE, (
        ('refusal, manager._begin, opened', 'lambda: None, manager._begin, opened'),)),
]
