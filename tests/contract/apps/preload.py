"The app of `main`, made once, and two processes forked off that serve it: what gunicorn does with `--preload`. The argument is the port"
import os
import socket
import sys
import uvicorn
import main

main.manager.broadcast_threadsafe('said', 'at import').result()
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(('127.0.0.1', int(sys.argv[1])))
sock.listen(100)
for _ in range(2):
    if not os.fork():
        uvicorn.Server(uvicorn.Config(main.app, log_level='warning')).run(sockets=[sock])
        os._exit(0)
os.wait()
