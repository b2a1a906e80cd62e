"Browsers, pages, and servers whose streams a test writes by hand: what the contract's browser tests use"
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/'contract/browser'))
from fixtures import (  # noqa: E402, F401
    browser, browsers, loop, make_site, page, proxy, pump, pumps, site, state, tabs, until)
