# The two commands: make run, make test. Everything else is for work on Casemate itself (see HACKING.md).
PYTHON = .venv/bin/python

.PHONY: help setup setup-tests run test test-full test-root test-busy test-windows test-deb test-wheel deb wheel check fix bench clean docs fuzz mutants man completion docs-site

help: ## show what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

setup: ## install what is missing: Debian packages, .venv
	@packaging/setup.sh

run: setup ## set everything up and show the main job on real virtual machines
	@bin/casemate tour

setup-tests: ## and what the tests need
	@packaging/setup.sh tests

test: setup-tests ## set everything up and run all tests, those on real virtual machines too
	@$(PYTHON) -m pytest tests

test-full: test-windows ## everything: full counts, Windows, and both commands in bare roots of both Debian releases
	@CASEMATE_FULL=1 $(PYTHON) -m pytest tests
	@for suite in bookworm trixie; do $(MAKE) --no-print-directory test-root SUITE=$$suite || exit 1; done

SUITE = trixie
GOALS = run test
test-root: setup ## both commands in a bare root of SUITE=trixie|bookworm|sid, as root (GOALS=run: one of them)
	@packaging/debian-root $(SUITE) sh -c 'for goal in $(GOALS); do make $$goal || exit 1; done'

test-busy: setup-tests ## the suite three times in random order beside a load of four processes a core
	@$(PYTHON) -m tests.busy 3

test-windows: ## the store's locks by Windows' own Python, under Wine
	@packaging/setup.sh windows
	@$(PYTHON) -m pytest tests/windows tests/component/laws/test_law6_windows.py

deb: ## Debian packages of the commit that is checked out, into build/deb
	@packaging/setup.sh package
	@packaging/make-deb
	@lintian --fail-on error build/deb/*.deb 2>/dev/null

wheel: setup ## a wheel of this tree, into build/wheel
	@rm -rf build/wheel build/lib build/bdist.*
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@ls -1 build/wheel/*.whl

test-deb: deb ## install the packages in a bare root of SUITE=bookworm|trixie, use them, upgrade, purge
	@packaging/make-deb --next >/dev/null
	@packaging/debian-root $(SUITE) sh tests/install/deb.sh

test-wheel: wheel ## put the wheel into fresh environments and use it
	@sh tests/install/wheel.sh "$$(ls $(CURDIR)/build/wheel/*.whl)"

check: setup-tests ## lint, types, layers, unit tests: about a minute
	@.venv/bin/ruff format --check src tests
	@.venv/bin/ruff check src tests
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache | tail -n 8
	@$(PYTHON) -m pytest tests/unit tests/contract tests/repo

fix: setup ## format the code and mend what the linter can
	@.venv/bin/ruff format src tests
	@.venv/bin/ruff check --fix src tests

bench: setup-tests ## measure, as ratios within one run; the table goes to docs/reference/performance.md
	@$(PYTHON) -m tests.bench
	@$(PYTHON) -m tests.bench.store --write
	@$(PYTHON) -m tests.bench.files_and_keys --write
	@$(PYTHON) -m tests.bench.policy --write
	@$(PYTHON) -m tests.bench.disposables --write
	@$(PYTHON) -m tests.bench.network --write
	@$(PYTHON) -m tests.bench.backup --write
	@$(PYTHON) -m tests.bench.vchan --write
	@$(PYTHON) -m tests.bench.api --write
	@$(PYTHON) -m tests.bench.completion --write
	@$(PYTHON) -m tests.bench.web --write

fuzz: setup ## fuzz each parser and state machine, a minute each (SECONDS=600 for ten)
	@$(PYTHON) -m pip install --quiet --requirement packaging/requirements-fuzz.txt
	@$(PYTHON) -m tests.fuzz --seconds $(or $(SECONDS),60)

mutants: setup-tests ## take each protection out of a copy of the code and see the tests fail that hold it
	@$(PYTHON) -m tests.mutants $(IDS)

docs: setup ## write the generated reference pages anew
	@$(PYTHON) -m casemate.api.reference docs/reference
	@$(PYTHON) -m casemate.cli.reference docs/reference
	@$(PYTHON) -m casemate.library.reference docs/reference
	@$(PYTHON) -m casemate.cli.completion --table

man: setup ## write the manual pages to build/man
	@$(PYTHON) -m casemate.cli.manual build/man

completion: setup ## write completion for bash, zsh and fish to build/completion
	@$(PYTHON) -m casemate.cli.completion build/completion

docs-site: ## build the docs as a site in build/site, without a warning
	@[ -x build/docs-venv/bin/mkdocs ] || { python3 -m venv build/docs-venv && \
		build/docs-venv/bin/pip install -q --disable-pip-version-check -r packaging/docs-site/requirements.txt; }
	@NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build -q --strict -f packaging/docs-site/mkdocs.yml
	@echo "The site is in build/site: python3 -m http.server -d build/site"

clean: ## end and remove everything that the tour and the tests of this checkout made; built templates stay
	@bin/casemate clean
	@rm -rf .mypy_cache .ruff_cache .hypothesis .pytest_cache build
	@find src tests -name __pycache__ -prune -exec rm -rf {} +
