"The floor for a server in Python: uvloop's transports, one write of ready bytes for each client and message, and nothing else. uvloop_floor.py PORT"
import asyncio
import re
import sys

import uvloop


class Floor(asyncio.Protocol):
    clients = {}

    def connection_made(self, transport): self.transport = transport

    def connection_lost(self, exc): self.clients.pop(self, None)

    def data_received(self, data):
        if not data.startswith(b'POST'):
            self.clients[self] = self.transport
            return self.transport.write(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n')
        head,_,text = data.partition(b'\r\n\r\n')  # A request this short comes in one piece; one that doesn't is waited for in vain, which shows
        event = b'event: tick\ndata: '+text+b'\n\n'
        times = int(re.search(rb'times=(\d+)', head)[1])
        self.sending = asyncio.ensure_future(self.send(b'%x\r\n%b\r\n' % (len(event), event), times))
        self.transport.write(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')

    async def send(self, chunk, times):
        for _ in range(times):
            for transport in self.clients.values(): transport.write(chunk)
            await asyncio.sleep(0)


async def main():
    server = await asyncio.get_running_loop().create_server(Floor, '127.0.0.1', int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


uvloop.run(main())
