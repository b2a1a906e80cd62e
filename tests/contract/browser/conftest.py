"The tests of the contract that need a browser"
from fixtures import (  # noqa: F401
    browser, browsers, loop, make_site, page, proxy, site, state, tabs, until)
