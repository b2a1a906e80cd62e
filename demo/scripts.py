"The page's htmx: from .assets if `make demo` put it there, else from the CDN. `setup_sse` adds the other scripts"
from pathlib import Path

from fasthtml.common import Mount,Script
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parents[1]/'.assets/node_modules'
FILES = {2: ('htmx.org/dist/htmx.min.js', 'htmx-ext-sse/dist/sse.min.js'),
         4: ('htmx4/dist/htmx.min.js', 'htmx4/dist/ext/hx-sse.min.js')}
PINNED = {2: ('2.0.7', 'ZBXiYtYQ6hJ2Y0ZNoYuI+Nq5MqWBr+chMrS/RkXpNzQCApHEhOt2aY8EJgqwHLkJ'),
          4: ('4.0.1', 'Qp9rdC8H7EqOoX+nR0P3RPG2Noji+qdwJlGpfzwQJsfOpp3sGwIdSP9xO3+UlEhn')}
ICON = ("data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'>"
        "<circle cx='4' cy='4' r='3' fill='royalblue'/></svg>")


def htmx(major):
    "Make the script elements of htmx `major`, and the routes that they need"
    if local := [Script(src=f'/assets/{o}') for o in FILES[major] if (FOLDER/o).exists()]:
        return local,[Mount('/assets', StaticFiles(directory=FOLDER))]
    version,digest = PINNED[major]
    src = f'https://cdn.jsdelivr.net/npm/htmx.org@{version}/dist/htmx.min.js'
    return [Script(src=src, crossorigin='anonymous', integrity=f'sha384-{digest}')],[]
