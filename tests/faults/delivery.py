"Messages: what a broadcast does, and who gets it"
from tests.faults import Fault

FAULTS = [
    Fault('what an app puts into a connection by hand overtakes what was broadcast before it', 'engine/stream.py', 'test_eight_promises.py', (
        ('_join(sorted(entries+own, key=lambda e: e.seq), max(self.group.head, self.cursor))', '_join(own+entries, max(self.group.head, self.cursor))'),)),
    Fault('a message that comes while a replay is sent is skipped', 'engine/stream.py', 'test_eight_promises.py', (
        ('        self.cursor = chunk.seq\n        if chunk.body: await self._send_chunk(chunk)\n',
         '        if chunk.body: await self._send_chunk(chunk)\n        self.cursor = hub.replay.seq\n'),)),
    Fault('a heartbeat is ahead of what an async renderer has yet to render, so a browser that breaks off there misses it', 'engine/stream.py', 'test_eight_promises.py', (
        ('        return not self._inbox\n', '        return True\n'),)),
    Fault('the disconnect hooks hear of a connection of which the connect hooks never heard', 'engine/stream.py', 'test_eight_promises.py', (
        ('            if self.opened is None: await self.closed(conn)\n', '            await self.closed(conn)\n'),)),
    Fault('a slow client that wants little is told a gap where nothing that it wants was missed', 'engine/stream.py', 'test_eight_promises.py', (
        ('        if not conn.receding: conn.cursor = group.after(conn.cursor)[0].seq-1\n', ''),)),
    Fault('a close cuts a message off and sends what comes behind it, so its browser never gets that message', 'engine/stream.py', 'test_eight_promises.py', (
        ("    if self.busy and not task.done(): self._rest = b''  # It may not come without what was given away before it\n", ''),)),
    Fault('a slow client whose end was skipped with older messages never ends', 'engine/stream.py', 'test_who_gets_what.py', (
        ("if self.hub.overflow=='evict' or not dropped.last: return", 'return'),)),
    Fault('a replay goes on behind the message at which the stream had ended, if a newer one of its key has replaced that', 'engine/stream.py', 'test_who_gets_what.py', (
        ('self.group.ends if self.group.until else None)', 'None)'),)),
    Fault('a user who is logged out keeps a stream whose request had begun before', 'engine/stream.py', 'test_who_gets_what.py', (
        ("if began is not None and was_disconnected(user, began): conn.end('closed')", 'pass'),)),
    Fault('those who wait for the backend together come in beyond `max_connections`', 'engine/stream.py', 'test_who_gets_what.py', (
        ('            else: refusal = self.refusal()', '            else: refusal = None'),)),
    Fault("a private message of somebody else ends a stranger's stream", 'engine/stream.py', 'test_who_gets_what.py', (
        ('return covers(self.until, event_type, self.hub.private.depth(event_type))', 'return covers(self.until, event_type, 0)'),)),
    Fault('clients that read are sent away because the event loop was blocked', 'engine/stream.py', 'test_who_gets_what.py', (
        ('_LOOKS = 4 ', '_LOOKS = 1 '),)),
    Fault('a progress bar fills the backlog of a slow client, which is sent away for states that it need not see', 'engine/stream.py', 'test_who_gets_what.py', (
        ('            if old is not None and not old.last:\n', '            if False:\n'),)),
    Fault('a stream is told a gap where its page says where another manager stood, too', 'engine/messages.py', 'test_who_gets_what.py', (
        ("        return next((o for o in ids if _epoch(o)==mine), '') or", "        return ids[0] or"),)),
    Fault('two processes that were forked off give one id to two messages', 'core.py', 'test_who_gets_what.py', (
        ('        if type(m._backend) is MemoryBackend: m._hub.replay.branch(m._backend.branch())\n', ''),)),
    Fault('what Redis dropped before a process had read it is lost in silence', 'backends/redis_reader.py', 'test_over_redis.py', (
        ('            if left or not await self.position.has_lost(page[0][1]): ', '            if True: '),)),
    Fault('a message of a newer version is skipped in silence', 'backends/redis_reader.py', 'test_over_redis.py', (
        ('            if entry.lost_version: lost = entry.id\n', '            if False: pass\n'),)),
    Fault('the history and the hooks of deliveries hear all of the past again when the backend starts anew', 'core.py', 'test_over_redis.py', (
        ('    for _,m in messages[first:]:\n', '    for _,m in messages:\n'),)),
    Fault('a broadcast whose connection to Redis broke is sent a second time', 'backends/redis_writer.py', 'test_over_redis.py', (
        ('                for p in batch: p.settle(State.SENT, e)\n',
         '                for p in reversed(batch):\n                    p.state = State.WAITING\n                    queue.appendleft(p)\n'),)),
    Fault('a browser that comes to a process which lags behind is told a gap where nothing is lost', 'backends/redis.py', 'test_over_redis.py', (
        ('        if not position.lacks(epoch, numbers): return\n', '        return\n'),)),
]
