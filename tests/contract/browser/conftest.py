"The tests of the contract that need a browser"
from fixtures import (  # noqa: F401
    browser, browsers, idle, leave_out_twins, loop, make_site, page, proxy, pump, pumps, site, state, tabs, until)

# Of these, which share all but a few lines of the client, each test has one
TWINS = ('4.0.0', '4.0.1'), ('alone-htmx2', 'alone-htmx4'), ('tab-htmx2', 'tab-htmx4')


def pytest_collection_modifyitems(config, items): leave_out_twins(config, items, TWINS)
