# Everything a fresh machine needs: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# a test module's fixtures are made once; tests that wait leave the cores to others
PYTEST := $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder --numprocesses

.PHONY: install demo demo-short test test-fast test-local test-ray test-clusters test-faults lint clean help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

install: $(STAMP)  ## .venv with the package, its tests' needs and pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gimp_ray needs Python 3.11 or newer; say which: make install PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install    ## small cohort, local Ray, genes -> pre-training -> fine-tuning -> evaluation -> report
	$(BIN)/gimp demo --out demo

demo-short: install
	$(BIN)/gimp demo --out demo-short --short

test: install    ## lint, then the tests without Ray, then those on a local Ray cluster
	$(MAKE) lint
	$(MAKE) test-local
	$(MAKE) test-ray

test-fast: install  ## the quick tests, without Ray
	$(PYTEST) 3 -m 'not ray and not slow' --ignore tests/faults

test-local: install  ## all tests without Ray: the quick ones, and those with real servers, kills and bad inputs
	$(PYTEST) 3 -m 'not ray' --ignore tests/faults

test-ray: install  ## the tests on local Ray clusters, one a test process
	$(PYTEST) 2 -m ray --ignore tests/faults --ignore tests/jobs --ignore tests/deploy --ignore tests/ray/test_two_nodes.py

test-faults: install  ## what a machine does to a run: SIGTERM, SIGKILL, a full disk, bad losses, two commands at once
	$(PYTEST) 2 tests/faults

test-clusters: install  ## heads, jobs and nodes of their own: every stage by `ray job submit`, two nodes, two hosts
	$(BIN)/python -m pytest -m ray tests/jobs tests/ray/test_two_nodes.py tests/deploy

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:           ## remove what demo and test made, and the environment
	rm -rf $(VENV) demo demo-short .pytest_cache .mypy_cache .ruff_cache
