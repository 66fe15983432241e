# The two commands: make run, make test. Everything else is for work on Casemate itself (see HACKING.md).
PYTHON = .venv/bin/python

.PHONY: help setup run test check fix bench clean docs fuzz

help: ## show what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 10

setup: ## install what is missing: Debian packages, .venv
	@packaging/setup.sh

run: setup ## set everything up and show the main job on real virtual machines
	@bin/casemate tour

test: setup ## set everything up and run all tests, those on real virtual machines too
	@$(PYTHON) -m pytest tests

check: setup ## lint, types, layers, unit tests: about a minute
	@.venv/bin/ruff format --check src tests
	@.venv/bin/ruff check src tests
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache | tail -n 8
	@$(PYTHON) -m pytest tests/unit tests/contract tests/repo

fix: setup ## format the code and mend what the linter can
	@.venv/bin/ruff format src tests
	@.venv/bin/ruff check --fix src tests

bench: setup ## measure, as ratios within one run; the table goes to docs/reference/performance.md
	@$(PYTHON) -m tests.bench
	@$(PYTHON) -m tests.bench.store --write
	@$(PYTHON) -m tests.bench.files_and_keys --write
	@$(PYTHON) -m tests.bench.policy --write
	@$(PYTHON) -m tests.bench.vchan --write
	@$(PYTHON) -m tests.bench.api --write

fuzz: setup ## fuzz each parser and state machine, a minute each (SECONDS=600 for ten)
	@$(PYTHON) -m pip install --quiet --requirement packaging/requirements-fuzz.txt
	@$(PYTHON) -m tests.fuzz --seconds $(or $(SECONDS),60)

docs: setup ## write the generated reference pages anew
	@$(PYTHON) -m casemate.api.reference docs/reference
	@$(PYTHON) -m casemate.cli.reference docs/reference

clean: ## end and remove everything that the tour and the tests of this checkout made; built templates stay
	@bin/casemate clean
	@rm -rf .mypy_cache .ruff_cache .hypothesis .pytest_cache build
	@find src tests -name __pycache__ -prune -exec rm -rf {} +
