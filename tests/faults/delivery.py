"Messages: what a broadcast does, and who gets it"
from tests.faults import Fault

FAULTS = [
    Fault('what an app puts into a connection by hand overtakes what was broadcast before it', 'engine/connection.py', 'test_eight_promises.py', (
        ('frames = sorted([*group.frames_after(self.cursor), *direct], key=lambda f: f.seq)',
         'frames = [*direct, *group.frames_after(self.cursor)]'),)),
    Fault('a message that comes while a replay is sent is skipped', 'engine/catch_up.py', 'test_eight_promises.py', (
        ('            conn.move_to(frame.seq)\n            if frame.body: await self._write(frame)\n',
         '            if frame.body: await self._write(frame)\n            conn.move_to(buffer.seq)\n'),)),
    Fault('a heartbeat is ahead of what an async renderer has yet to render, so a browser that breaks off there misses it', 'engine/pump.py', 'test_eight_promises.py', (
        ('id = buffer.id(seq) if not group.renders else None',
         'id = buffer.id(seq)'),)),
    Fault('the disconnect hooks hear of a connection of which the connect hooks never heard', 'engine/response.py', 'test_eight_promises.py', (
        ('        return conn,StreamEnd(recheck, self.background)',
         '        end = StreamEnd(recheck, self.background)\n        end._closed = self.closed\n        return conn,end'),)),
    Fault('a slow client that wants little is told a gap where nothing that it wants was missed', 'engine/connection.py', 'test_eight_promises.py', (
        ('self.state,self.cursor = LAGGING,self.group.frames_after(self.cursor)[0].seq-1',
         'self.state = LAGGING'),)),
    Fault('a close cuts a message off and sends what comes behind it, so its browser never gets that message', 'engine/connection.py', 'test_eight_promises.py', (
        ("if await self.sender.stop(wait=self.ended=='closed'): self.rest = b''",
         "await self.sender.stop(wait=self.ended=='closed')"),)),
    Fault('a slow client whose end was skipped with older messages never ends', 'engine/group.py', 'test_who_gets_what.py', (
        ("if self.hub.overflow=='evict' or not frame.last: return", 'return'),)),
    Fault('a replay goes on behind the message at which the stream had ended, if a newer one of its key has replaced that', 'engine/catch_up.py', 'test_who_gets_what.py', (
        ('hub.replay_batch, group.ends if group.until else None)',
         'hub.replay_batch, None)'),)),
    Fault('a user who is logged out keeps a stream whose request had begun before', 'engine/hub.py', 'test_who_gets_what.py', (
        ("if began is not None and was_disconnected(user, began): conn.end('closed')", 'pass'),)),
    Fault('ten pages that open while Redis is away wait for ten failures, one behind the other', 'manager/delivery.py', 'test_who_gets_what.py', (
        ('self._failed = self.hub.loop.time(),kind,str(e)', 'self._failed = self.hub.loop.time()-2,kind,str(e)'),)),
    Fault('those who wait for the backend together come in beyond `max_connections`', 'engine/response.py', 'test_who_gets_what.py', (
        ('        return self.refusal()  # That may',
         '        return None  # That may'),)),
    Fault("a private message of somebody else ends a stranger's stream", 'engine/group.py', 'test_who_gets_what.py', (
        ('return covers(self.until, event_type, self.hub.private.depth(event_type))', 'return covers(self.until, event_type, 0)'),)),
    Fault('clients that read are sent away because the event loop was blocked', 'engine/pump.py', 'test_who_gets_what.py', (
        ('LOOKS = 4 ',
         'LOOKS = 1 '),)),
    Fault('a progress bar fills the backlog of a slow client, which is sent away for states that it need not see', 'engine/group.py', 'test_who_gets_what.py', (
        ('            if old is not None and not old.last:\n', '            if False:\n'),)),
    Fault('a stream is told a gap where its page says where another manager stood, too', 'engine/messages.py', 'test_who_gets_what.py', (
        ("        return next((o for o in ids if epoch_of(o)==mine), '') or", "        return ids[0] or"),)),
    Fault('two processes that were forked off give one id to two messages', 'manager/delivery.py', 'test_who_gets_what.py', (
        ('        if type(self.backend) is MemoryBackend: self.hub.replay.branch(self.backend.branch())\n', ''),)),
    Fault('broadcasts that nobody waits for any more pile up before a full queue', 'engine/queues.py', 'test_full_queues.py', (
        ('        if len(self.waiting)>=MAX_WAITING: return False\n', ''),)),
    Fault('a subscriber gets private events of others', 'engine/queues.py', 'test_who_gets_what.py', (
        ('        return covers(self.events, event_type, 0 if self.private else self.owner.hub.private.depth(event_type))', '        return True'),)),
    Fault('what Redis dropped before a process had read it is lost in silence', 'backends/redis_reader.py', 'test_over_redis.py', (
        ('            if left or not await self.position.has_lost(page[0][1]): ', '            if True: '),)),
    Fault('a message of a newer version is skipped in silence', 'backends/redis_reader.py', 'test_over_redis.py', (
        ('            if entry.lost_version: lost = entry.id\n', '            if False: pass\n'),)),
    Fault('the history and the hooks of deliveries hear all of the past again when the backend starts anew', 'manager/delivery.py', 'test_over_backends.py', (
        ('        for _,m in messages[first:]:\n', '        for _,m in messages:\n'),)),
    Fault('a broadcast whose connection to Redis broke is sent a second time', 'backends/redis_writer.py', 'test_over_redis.py', (
        ('                for p in batch: p.settle(State.SENT, e)\n',
         '                for p in reversed(batch):\n                    p.state = State.WAITING\n                    queue.appendleft(p)\n'),)),
    Fault('a browser that comes to a process which lags behind is told a gap where nothing is lost', 'backends/session.py', 'test_over_redis.py', (
        ('        if not position.lacks(epoch, place): return\n', '        return\n'),)),
    Fault('somebody who was disconnected still gets what was broadcast afterwards', 'backends/sqlite_log.py', 'test_over_backends.py', (
        ('return _merge(messages, commands) if commands else messages', 'return messages+commands'),)),
    Fault('what a restored backup has lost is lost in silence', 'backends/sqlite_log.py', 'test_over_sqlite.py', (
        ('if seq and (not rows or rows[0][:2]!=(seq, ms)): return None', 'if seq and not rows: return rows'),)),
    Fault('a file that took the place of another one is not read', 'backends/sqlite_thread.py', 'test_over_sqlite.py', (
        ('return not self.is_stale and self._file.identity()==self.identity', 'return not self.is_stale'),)),
    Fault('a broadcast that failed as the file was locked is sent afterwards', 'backends/records.py', 'test_over_sqlite.py', (
        ('if self.state is not State.WAITING: return False', 'pass'),)),
    Fault('a task is made for each broadcast of a burst', 'manager/outbox.py', 'test_over_sqlite.py', (
        ('        if self.pack is None: return self.finish(', '        if True: return self.finish('),)),
    Fault('an idle process looks into the file many times a second', 'backends/sqlite_alarm.py', 'test_over_sqlite.py', (
        ("        if sys.platform!='linux': raise", "        if True: raise"),)),
    Fault('a file is mixed with the WAL of the one that it has replaced', 'backends/sqlite_driver.py', 'test_faults_of_sqlite.py', (
        ("        return f'{path}-wal belongs to the file that {path} has replaced, and SQLite would mix the two'\n", "        return ''\n"),)),
    Fault('two processes write into two files as one of them was removed', 'backends/sqlite_driver.py', 'test_faults_of_sqlite.py', (
        ("return f'{path}-wal was removed while {path} was open'", "return ''"),)),
    Fault('a backup that is restored into an empty log is sent as news', 'backends/sqlite_reader.py', 'test_faults_of_sqlite.py', (
        (' or not self.at.seq and self._tables.epoch(connection)!=self._epoch:', ':'),)),
    Fault('whoever could not write a file at the start never writes it', 'backends/sqlite_file.py', 'test_faults_of_sqlite.py', (
        ("raise PermissionError('the file is readonly for this process')", 'pass'),)),
    Fault('a broadcast waits in vain for a file that is no database', 'backends/sqlite_thread.py', 'test_faults_of_sqlite.py', (
        ('        self._writer.refuse(str(error := self._file.error(e)))\n        self._questions.refuse(error)\n', ''),)),
    Fault('a user whose disconnection is lost goes on listening', 'manager/delivery.py', 'test_over_sqlite.py', (
        ('if commands_lost and self.loop is self.hub.loop: self.hub.users.disconnect_all()', 'pass'),)),
    Fault('a transaction is committed without what was broadcast in it', 'backends/sqlite_transaction.py', 'test_one_commit.py', (
        ('        self._pool.tables.append_records(PlainRows(connection), self._records)\n', ''),)),
    Fault('what a block did is committed though the block has failed', 'manager/database.py', 'test_one_commit.py', (
        ('t.rollback() if has_failed else t.commit()', 't.commit()'),)),
    Fault('a block can commit its rows before their broadcasts', 'backends/sqlite_transaction.py', 'test_transactions_of_sqlite.py', (
        ('            handle.connection.set_authorizer(self._authorize)\n', ''),)),
    Fault('whoever was cancelled while waiting for the lock keeps it', 'manager/block.py', 'test_transactions_of_sqlite.py', (
        ('self._blocks.call(self._transaction.rollback)', 'pass'),)),
    Fault('the connection of a block is used by the next one', 'backends/sqlite_transaction.py', 'test_one_commit.py', (
        ('            if not self._unused: self.keep(self._open())  # Before: the last one to close empties `FILE-wal`\n        handle.close()\n',
         '            return self.keep(handle)\n'),)),
    Fault('what was broadcast before a transaction comes behind it', 'manager/database.py', 'test_one_commit.py', (
        ('        if self._earlier: concurrent.futures.wait(', '        if False: concurrent.futures.wait('),)),
    Fault('a row that another one replaces goes without an event', 'backends/sqlite_triggers.py', 'test_watch_of_sqlite.py', (
        ('return [o for unique in uniques for o in', 'return [o for unique in () for o in'),)),
    Fault('the values of a row that one with its key replaces are in no event', 'backends/sqlite_triggers.py', 'test_watch_of_sqlite.py', (
        (', *self._announce_replaced(key, same)', ''),)),
    Fault('an update has only the new values', 'backends/sqlite_triggers.py', 'test_watch_of_sqlite.py', (
        (", before='old')", ')'),)),
    Fault('to watch more columns takes those away that there are', 'backends/sqlite_watch.py', 'test_watch_of_sqlite.py', (
        ('[*(known or ()), *columns]', 'columns'),)),
    Fault('a change of one row has the views of all users drawn', 'live/views.py', 'test_live_queries.py', (
        ('if v.element.name!=live and v.element.concerns(fields, v.arguments)]', 'if v.element.name!=live]'),)),
    Fault('a view shows a row that has become one of somebody else', 'live/query.py', 'test_live_queries.py', (
        ("for o in ('old', 'new') if", "for o in ('new',) if"),)),
    Fault('a view misses rows that are equal to its argument for SQLite alone', 'live/query.py', 'test_live_queries.py', (
        ('return float(text) if _NUMBER.fullmatch(text) else text', 'return text'),)),
    Fault('a page shows rows as they were before another program has committed', 'live/view.py', 'test_live_queries.py', (
        (' or self.element.has_news()', ''),)),
    Fault('what a large transaction has changed beyond its first rows goes without an event', 'backends/sqlite_triggers.py', 'test_watched_tables.py', (
        ('dirty=dirty+(n>={LIMIT} or {odd})', 'dirty=dirty+({odd})'),)),
    Fault('a table that was made anew is watched no more', 'backends/sqlite_watch.py', 'test_watch_of_sqlite.py', (
        ('        if not all(o.is_intact for o in compared):\n', '        if False:\n'),)),
    Fault('changes that were missed while a table had no triggers are not announced', 'backends/sqlite_watch.py', 'test_watch_of_sqlite.py', (
        ("            self._all(connection, 'update sse_watch set dirty=dirty+1 where name=?', (o.name,))\n", ''),)),
    Fault('the events of all tables go to whoever asks for everything', 'backends/sqlite.py', 'test_watched_tables.py', (
        ("    private_events = 'table:{name}:**',", "    private_events = ()"),)),
    Fault('a page that is drawn in a read transaction goes on where its process stands when the element is made', 'htmx.py', 'test_exact_pages.py', (
        ('    return _PageCursor(ids) if (ids := reading_at.get()) else PAGE_CURSOR',
         '    from .engine.messages import _buffers,epoch_of\n'
         '    newest = {epoch_of(o.cursor): o.cursor for o in _buffers}\n'
         '    ids = tuple(newest.get(epoch_of(o), o) for o in reading_at.get())\n'
         '    return _PageCursor(ids) if ids else PAGE_CURSOR'),)),
    Fault('the state of a page is read in another transaction than its place', 'backends/sqlite_reading.py', 'test_exact_pages.py', (
        ("for sql in ('pragma query_only=1', 'begin')", "for sql in ('pragma query_only=1',)"),)),
    Fault('an element that is made behind a read transaction stands where that stood', 'manager/block.py', 'test_reading.py', (
        ('        if reading_at.get() is self._ids: reading_at.set(self._outer)\n', ''),)),
    Fault('what is written in a block that only reads is gone without an error', 'backends/sqlite_reading.py', 'test_reading.py', (
        ("for sql in ('pragma query_only=1', 'begin')", "for sql in ('begin',)"),)),
    Fault('a state that was read in a transaction is taken for that of the process, so what came between comes twice', 'engine/catch_up.py', 'test_reading.py', (
        ('            self.seq,self.id = seq,id\n', ''),)),
]
