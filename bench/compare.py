"""What other ways to keep pages up to date cost, and what each does when a client stops reading: for the page "Comparison"

    python bench/compare.py [--rounds 5]

500 clients and messages of 200 bytes; then 50 clients, and five more that read nothing, while 3,000 messages of 20 KB are sent. Into results/, as run.py does.
"""
import argparse

import harness
from harness import measure


def main(n):
    harness.raise_limit()
    servers = harness.Servers()
    streams = [servers.ours(), servers.by_hand(), servers.starlette(), servers.sse_starlette(), servers.datastar()]
    sockets = [servers.websocket('WebSocket, compressed', compress=True), servers.websocket()]

    def tabs(server):
        opened,got = measure(servers.python, server, [['open', 500], ['one_by_one', 20 if server.name=='polling' else 60]])
        return dict(us=got['us'], kb=opened['kb'], connect_us=opened['connect_us'], p99=got['ms'][-3])
    print('== 500 clients')
    load = harness.load()
    found = harness.rounds(n, {s.name: (lambda s=s: tabs(s)) for s in [*streams, *sockets, servers.polling()]})
    harness.save('tabs', servers, found, n, load)

    def deaf(server):
        # What was gained in the first half may be a log of bounded length
        *_,first,second = measure(servers.python, server, [['open', 50], ['stall', 5], ['beside_stalled', 1500], ['beside_stalled', 1500]], size=20_000, patience=5)
        return dict(through=first['through']+second['through'], mb=second['mb'])
    print('== 50 clients, and five that read nothing')
    n = min(n, 3)  # It is yes or no
    found = harness.rounds(n, {s.name: (lambda s=s: deaf(s)) for s in [*streams, sockets[-1]]})
    harness.save('deaf', servers, found, n, load)


if __name__=='__main__':
    parser = argparse.ArgumentParser(description='What other ways to keep pages up to date cost')
    parser.add_argument('--rounds', type=int, default=5)
    main(parser.parse_args().rounds)
