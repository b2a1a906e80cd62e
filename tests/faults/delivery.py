"Messages: what a broadcast does, and who gets it"
from tests.faults import Fault

FAULTS = [
    Fault('what an app puts into a connection by hand overtakes what was broadcast before it', 'stream.py', 'test_eight_promises.py', (
        ('_join(sorted(entries+own, key=lambda e: e.seq), max(self.group.head, self.cursor))', '_join(own+entries, max(self.group.head, self.cursor))'),)),
    Fault('a message that comes while a replay is sent is skipped', 'stream.py', 'test_eight_promises.py', (
        ('        self.cursor = chunk.seq\n        if chunk.body: await self._send_chunk(chunk)\n',
         '        if chunk.body: await self._send_chunk(chunk)\n        self.cursor = hub.log.seq\n'),)),
    Fault('a heartbeat is ahead of what an async renderer has yet to render, so a browser that breaks off there misses it', 'stream.py', 'test_eight_promises.py', (
        ('        return not self._inbox\n', '        return True\n'),)),
    Fault('the disconnect hooks hear of a connection of which the connect hooks never heard', 'stream.py', 'test_eight_promises.py', (
        ('            if self.opened is None: await self.closed(conn)\n', '            await self.closed(conn)\n'),)),
    Fault('thousands of browsers that were sent away together come back at one moment', 'stream.py', 'test_eight_promises.py', (
        ('int(self.hub.retry_ms*random.uniform(.5, 1.5))', 'self.hub.retry_ms'),)),
    Fault('a slow client whose end was skipped with older messages never ends', 'stream.py', 'test_who_gets_what.py', (
        ("if self.hub.overflow=='evict' or not dropped.last: return", 'return'),)),
    Fault('a replay goes on behind the message at which the stream had ended, if a newer one of its key has replaced that', 'stream.py', 'test_who_gets_what.py', (
        ('self.group.ends if self.group.until else None)', 'None)'),)),
    Fault('a user who is logged out keeps a stream whose request had begun before', 'stream.py', 'test_who_gets_what.py', (
        ("if began is not None and _was_disconnected(user, began): conn.end('closed')", 'pass'),)),
    Fault('those who wait for the backend together come in beyond `max_connections`', 'stream.py', 'test_who_gets_what.py', (
        ('            else: refusal = self.refusal()', '            else: refusal = None'),)),
    Fault("a private message of somebody else ends a stranger's stream", 'stream.py', 'test_who_gets_what.py', (
        ('return covers(self.until, event_type, self.hub.private.depth(event_type))', 'return covers(self.until, event_type, 0)'),)),
    Fault('each tab of a browser, rather than the browser, counts for `max_per_user`', 'stream.py', 'test_who_gets_what.py', (
        ('self.requests[conn] = place = carrier or conn', 'self.requests[conn] = place = conn'),)),
    Fault('clients that read are sent away because the event loop was blocked', 'stream.py', 'test_who_gets_what.py', (
        ('_LOOKS = 4 ', '_LOOKS = 1 '),)),
    Fault('a progress bar fills the backlog of a slow client, which is sent away for states that it need not see', 'stream.py', 'test_who_gets_what.py', (
        ('            if old is not None and not old.last:\n', '            if False:\n'),)),
    Fault('a stream stays open for somebody whose right to it was answered with anything but yes or no', 'stream.py', 'test_who_gets_what.py', (
        ('next(reversed(self.streams.values()))) is True', 'next(reversed(self.streams.values()))) not in (False, None)'),)),
    Fault('of two kinds of messages that have the same key only one is replayed', 'backend.py', 'test_who_gets_what.py', (
        ("None if key is None else (self['type'], key)", 'None if key is None else (None, key)'),)),
    Fault('two processes that were forked off give one id to two messages', 'core.py', 'test_who_gets_what.py', (
        ('        if type(m._backend) is MemoryBackend: m._hub.log.branch(m._backend.branch())\n', ''),)),
    Fault('a subscription gets what it did not ask for while it opens', 'core.py', 'test_who_gets_what.py', (
        ('    queue = await self._register(wanted=wanted, private=private)\n', '    queue = await self._register(private=private)\n    self._queues[queue] = wanted,private\n'),)),
    Fault('a message overtakes what the connect hooks of its connection do first', 'stream.py', 'test_who_gets_what.py', (
        ('        if self._opening is not None: await self._opened()\n', ''),)),
    Fault('what Redis dropped before a process had read it is lost in silence', 'redis_backend.py', 'test_over_redis.py', (
        ('        if left or not await self._missed(entries): await self._take(entries)', '        if True: await self._take(entries)'),)),
    Fault('the history and the hooks of deliveries hear all of the past again when the backend starts anew', 'core.py', 'test_over_redis.py', (
        ('    for _,m in messages[first:]:\n', '    for _,m in messages:\n'),)),
    Fault('a broadcast whose connection to Redis broke is sent a second time', 'redis_backend.py', 'test_over_redis.py', (
        ("            for b in batch: self._settle(b, 'under way', e)\n",
         "            for b in reversed(batch):\n                b.state = 'waiting'\n                queue.appendleft(b)\n"),)),
    Fault('a browser that comes to a process which lags behind is told a gap where nothing is lost', 'redis_backend.py', 'test_over_redis.py', (
        ('    if not lacks(): return\n    self._run()\n', '    return\n    self._run()\n'),)),
]
