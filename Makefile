# Each command sets up all it needs. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
FACTS := pyproject.toml settings.ini setup.py
IN_BROWSERS := tests/browser tests/contract/browser

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r c d; do printf '%-14s %s\n' "$$c" "$$d"; done

demo: .venv/app ## Start the demo and print its address
	@$(BIN)/python tools/assets.py
	@$(BIN)/python demo/main.py

test: .venv/dev ## Check everything that CI checks: notebooks, lint, types, tests, the wheel
	@$(BIN)/python tools/check.py

test-fast: .venv/dev ## The tests that need no server and no browser: under a minute
	@$(BIN)/python -m pytest -q -m unit tests $(IN_BROWSERS:%=--ignore=%)

test-integration: .venv/dev ## The tests that start servers, Redis and proxies, or take their time
	@$(BIN)/python tools/check.py system scripts
	@$(BIN)/python -m pytest -q -m integration tests $(IN_BROWSERS:%=--ignore=%)

test-browser: .venv/dev ## The tests in browsers
	@$(BIN)/python tools/check.py system scripts
	@$(BIN)/python -m pytest -q $(IN_BROWSERS)

chaos: .venv/dev ## Six minutes in which all goes wrong: workers killed, Redis restarted, the file locked, clients that stall and die
	@for store in sqlite3 fastlite redis; do $(BIN)/python tests/contract/chaos.py $$store --seconds 120 || exit; done

tabs: .venv/dev ## Whatever may happen to tabs and connections: 20 random runs in Chromium, 5 in Firefox, 20 returns of the server with each log; forty minutes
	@TABS_RUNS=20 TABS_BROWSER=chromium $(BIN)/python -m pytest tests/browser/test_tabs_random.py -q
	@TABS_RUNS=5 TABS_BROWSER=firefox $(BIN)/python -m pytest tests/browser/test_tabs_random.py -q
	@TABS_RESTARTS=20 $(BIN)/python -m pytest tests/browser/test_tabs_come_back.py -q -s

live: .venv/dev ## Live elements: 3,000 random series of drawings and 30,000 random pieces of HTML in both browsers; five minutes
	@LIVE_RUNS=3000 $(BIN)/python -m pytest tests/browser/test_live_changes.py -q -k random
	@LIVE_RUNS=30000 $(BIN)/python -m pytest tests/browser/test_live_parser.py -q -k soup

webkit: .venv/dev ## What matters most about tabs and connections, in Debian's WebKitGTK: a minute or two
	@$(BIN)/python -m pytest tests/webkit.py -q

faults: .venv/dev ## Does the contract suite catch what it must? 75 known faults, one after another: ten minutes
	@$(BIN)/python tests/faults/run.py

soak: .venv/dev ## 200,000 tabs come and go, and 48,000 over sockets: does anything stay?
	@SOAK=200000 $(BIN)/python -m pytest tests/test_soak.py -q -s
	@CROWD=40000 $(BIN)/python -m pytest tests/contract/test_hostile_clients.py -q -k clients_leave --timeout 1800

bench: .venv/dev ## Measure what a broadcast costs, beside peers, and write it into the page "Speed": five minutes
	@$(PYTHON) bench/run.py
	@$(BIN)/python bench/pages.py

bench-all: .venv/dev ## The whole table: 20,000 clients, sizes, servers, the garbage collector, the page "Comparison": forty minutes
	@$(PYTHON) bench/run.py all
	@$(PYTHON) bench/compare.py
	@$(BIN)/python bench/backends.py
	@$(BIN)/python bench/live.py
	@$(BIN)/python bench/pages.py

docs: .venv/dev ## Render the documentation into _docs/
	@$(BIN)/python tools/docs.py

prepare: .venv/dev ## Clean and export the notebooks, then write README.md
	@$(BIN)/nbdev-clean
	@$(BIN)/nbdev-export
	@$(BIN)/python -c 'from nbdev.quarto import refresh_quarto_yml; refresh_quarto_yml()'
	@$(BIN)/python tools/readme.py

clean: ## Remove the environment and all that the tools made
	rm -rf .venv .assets _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/app: .venv/pip $(FACTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/pip $(FACTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/app

.PHONY: help demo test test-fast test-integration test-browser chaos tabs live webkit faults soak bench bench-all docs prepare clean
