"Browsers, pages, and servers whose streams a test writes by hand: what the contract's browser tests use"
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/'contract/browser'))
from fixtures import (  # noqa: E402, F401
    browser, browsers, leave_out_twins, loop, make_site, page, proxy, pump, pumps, site, state, tabs, until)

# Of these, which differ by the separator in the names of events, each test has one
TWINS = ('htmx 4', 'htmx 4 with -'),


def pytest_collection_modifyitems(config, items): leave_out_twins(config, items, TWINS)
