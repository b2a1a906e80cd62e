"""Processes that write into the SQLite file of `exact`, and broadcast what they write in the same transactions

Each line that comes has one more of them forked off, and its process id is answered. They end when they are killed, which is
what the test does: they never close anything.
"""
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from cjm_fasthtml_sse.core import SSEBroadcastManager, SSEError

ITEMS = 20

class Undo(Exception): pass

def write(path, rnd):
    "A fifth of the transactions is rolled back"
    sse = SSEBroadcastManager(backend=Path(path))
    while True:
        try:
            with suppress(Undo), sse.transaction() as db:
                for id in rnd.sample(range(ITEMS), rnd.choice((1, 1, 3))):
                    (version,), = db.execute('update item set version=version+1 where id=? returning version', (id,)).fetchall()
                    sse.broadcast('item', [id, version])
                if rnd.random()<.2: raise Undo
        except SSEError as e:
            if 'was locked' not in str(e): raise  # Others had the file for too long, and nothing was written: once more
        time.sleep(.004)

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
