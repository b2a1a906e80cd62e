"""Where the memory of an open stream is, as JSON: KB by the package whose code took it, as tracemalloc sees it

    python bench/memory.py /events?n=1

What C code takes outside of Python's allocator is not in it.
"""
import asyncio
import gc
import json
import socket
import sys
import tracemalloc
from collections import Counter

import uvicorn
import uvloop

sys.path.append(f'{__file__.rpartition("/")[0]}/peers')
PACKAGES = {'fasthtml/': 'FastHTML', 'fastcore/': 'FastHTML', 'starlette/': 'Starlette', 'uvicorn/': 'uvicorn', 'asyncio/': 'asyncio', 'socket.py': 'client', 'memory.py': 'client', 'cjm_fasthtml_sse/': 'ours'}  # The last one may be a folder that the others are in


def package(filename): return next((to for name,to in PACKAGES.items() if f'/{name}' in filename), 'other')


async def main(path, n=1000):
    from ours import app
    server = uvicorn.Server(uvicorn.Config(app, port=0, loop='uvloop', http='httptools', log_level='warning', backlog=4096))
    serving,loop = asyncio.create_task(server.serve()),asyncio.get_running_loop()
    while not server.started: await asyncio.sleep(.05)
    at = server.servers[0].sockets[0].getsockname()

    async def opened(n):
        socks = [socket.create_connection(at) for _ in range(n)]
        for sock in socks:
            sock.setblocking(False)
            await loop.sock_sendall(sock, f'GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n'.encode())
            await loop.sock_recv(sock, 65536)
        await asyncio.sleep(1)
        gc.collect()
        return socks

    first = await opened(50)  # What is made once
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    more = await opened(n)
    found = Counter()
    for o in tracemalloc.take_snapshot().compare_to(before, 'filename'): found[package(o.traceback[0].filename)] += o.size_diff
    print(json.dumps({name: size/n/1000 for name,size in found.items() if name!='client'}))
    for sock in first+more: sock.close()
    server.should_exit = True
    await serving


uvloop.run(main(sys.argv[1]))
