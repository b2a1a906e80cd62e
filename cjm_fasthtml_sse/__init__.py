"""Real-time pages with FastHTML: server-sent events and HTMX, every browser tab in sync

Modules:

- `cjm_fasthtml_sse.backends.base`: What a backend promises, and the suite that checks it
- `cjm_fasthtml_sse.backends.packing`: How data and elements are written for other processes, and read there
- `cjm_fasthtml_sse.backends.redis`: Broadcasts between processes over a Redis or Valkey stream: nothing lost, one order, one id everywhere
- `cjm_fasthtml_sse.backends.redis_connection`: One connection to Redis, and what happens to it when something goes wrong
- `cjm_fasthtml_sse.backends.redis_entries`: What stands in Redis: the entries of the stream, their ids and their version
- `cjm_fasthtml_sse.backends.redis_reader`: How a process reads the stream, and how it notices that something is lost
- `cjm_fasthtml_sse.backends.redis_reports`: What each process reports of itself, for all others to read
- `cjm_fasthtml_sse.backends.redis_writer`: How records get into the stream, and what is known of each when something goes wrong
- `cjm_fasthtml_sse.common`: All that an app uses, in one import
- `cjm_fasthtml_sse.core`: The broadcast manager: an app opens streams with it, and broadcasts to them
- `cjm_fasthtml_sse.dashboard`: The live dashboard: what a manager does, in a page that updates itself
- `cjm_fasthtml_sse.dispatcher`: Call the handlers of an event, found by pattern, in order of priority, behind filters, transformers and middleware
- `cjm_fasthtml_sse.engine.checks`: The checks of numbers that a user of the library gives
- `cjm_fasthtml_sse.engine.middleware`: The layers between a response and the server, and whether they leave bodies alone
- `cjm_fasthtml_sse.engine.patterns`: The grammar of event types, and the index of callbacks by pattern
- `cjm_fasthtml_sse.engine.queues`: Queues that an app reads itself: how they get messages, wait when full, and end
- `cjm_fasthtml_sse.engine.servers`: What this library knows of uvicorn, hypercorn, granian and gunicorn, and of the signals that stop them
- `cjm_fasthtml_sse.guards`: Who may use a route of this library
- `cjm_fasthtml_sse.headers`: The scripts that a page loads, as headers of an app
- `cjm_fasthtml_sse.helpers`: Set-up of an app, out-of-band elements, and `@sse_element`
- `cjm_fasthtml_sse.htmx`: The attributes that connect a page to an event stream, and the scripts behind them
- `cjm_fasthtml_sse.job`: A job that is tracked: its loop, its speed, and its reports
- `cjm_fasthtml_sse.manager.admission`: Who may open one more connection
- `cjm_fasthtml_sse.manager.broadcast`: What `broadcast` returns: a broadcast that was sent, and that may be awaited
- `cjm_fasthtml_sse.manager.cluster`: What the processes that share a backend report of themselves
- `cjm_fasthtml_sse.manager.delivery`: What a backend delivers reaches the connections of this process; and the start and stop of the backend
- `cjm_fasthtml_sse.manager.hooks`: The callbacks of a manager: how they are called, and what waits for them
- `cjm_fasthtml_sse.manager.outbox`: The way of a broadcast from the call to the backend, in whatever thread and whether or not an event loop runs
- `cjm_fasthtml_sse.manager.presence`: Who is connected, in all processes, for the hooks of `on_presence`
- `cjm_fasthtml_sse.monitoring`: The connection monitor: it shows in a page whether its stream is connected
- `cjm_fasthtml_sse.multiplex.carrier`: The connection that the channels of a browser share
- `cjm_fasthtml_sse.multiplex.channel`: One stream of one element: its request, and what waits to be sent
- `cjm_fasthtml_sse.multiplex.endpoint`: A thousand streams, in any number of tabs, on one connection for each browser
- `cjm_fasthtml_sse.multiplex.protocol`: What travels between a browser and its carrier: packets, and the requests that open and close channels
- `cjm_fasthtml_sse.multiplex.request`: From a browser's `POST` to the requests of its channels
- `cjm_fasthtml_sse.progress`: Work that takes long: a loop reports to every tab how far it is, and how it ended
- `cjm_fasthtml_sse.setup`: What stands around an app with event streams
- `cjm_fasthtml_sse.testing`: A client for event streams that never end, in process: no server, no sockets, no waiting without a bound
- `cjm_fasthtml_sse.updater`: Turn an event into elements, which the browser swaps into the page out of band
- `cjm_fasthtml_sse.visitor`: Which visitor sends a request, and the tickets that prove which streams this visitor may open"""

__version__ = "0.1.0"
