"""Processes that write into the place of `exact`, and broadcast what they write in the same transactions

Each line that comes has one more of them forked off, and its process id is answered. They end when they are killed, which is
what the test does: they never close anything.
"""
import os
import random
import signal
import sys
import time
from contextlib import suppress
from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError

ITEMS = 20

class Undo(Exception): pass

def write(address, rnd):
    "A fifth of the transactions is rolled back"
    sse = SSEBroadcastManager(backend=address)
    while True:
        try:
            with suppress(Undo), sse.transaction() as db:
                for id in rnd.sample(range(ITEMS), rnd.choice((1, 1, 3))):
                    (version,), = db.execute('update item set version=version+1 where id=? returning version', (id,)).fetchall()
                    sse.broadcast('item', [id, version])
                if rnd.random()<.2: raise Undo
        except SSEError as e:
            if 'was locked' not in str(e): raise  # Others had the lock for too long, and nothing was written: once more
        time.sleep(.004)  # Others have a turn, too

if __name__=='__main__':
    for seed in sys.stdin:
        if pid := os.fork():
            print(pid, flush=True)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]: pass
        else:
            signal.alarm(300)
            sys.stdin.close()
            write(sys.argv[1], random.Random(seed))
