"The tests of the contract that need a browser"
from zlib import crc32

from fixtures import (  # noqa: F401
    browser, browsers, loop, make_site, page, proxy, pump, pumps, site, state, tabs, until)

# Of these, which share all but a few lines of the client, each test has one
TWINS = ('4.0.0', '4.0.1'), ('alone-htmx2', 'alone-htmx4'), ('tab-htmx2', 'tab-htmx4')


def pytest_collection_modifyitems(config, items):
    "A test's name says which one of the twins it has, so that it has the same one wherever it runs"
    found = {}
    for item in items:
        for pair in TWINS:
            for one in pair:
                if one in item.name: found.setdefault(item.nodeid.replace(one, pair[0]), []).append(item)
    left_out = [both[crc32(name.encode())%2] for name,both in found.items() if len(both)==2]
    items[:] = [o for o in items if o not in left_out]
    config.hook.pytest_deselected(items=left_out)
