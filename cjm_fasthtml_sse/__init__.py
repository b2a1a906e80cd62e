"""Real-time pages with FastHTML: server-sent events and HTMX, every browser tab in sync

Modules:

- `cjm_fasthtml_sse.backends.base`: What a backend promises, and the suite that checks it
- `cjm_fasthtml_sse.backends.packing`: How data and elements are written for other processes, and read there
- `cjm_fasthtml_sse.engine.servers`: What this library knows of uvicorn, hypercorn, granian and gunicorn, and of the signals that stop them"""

__version__ = "0.1.0"
