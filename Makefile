# `make` lists the targets. Each one does its own set-up: all it needs is Python 3.11 or newer.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST_ARGS ?=
BENCH_ARGS  ?=
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')  # one in three waits

# What the tests write goes with them (400 MB): where memory has room, they wait for no disk.
SCRATCH := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 2000000 {print $$6}')

# Thousands of processes are started: where this is set, each compiles every module anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench storm docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.run  ## the main job on real input, about ten seconds
	@$(BIN)/python examples/stdlib_census.py

test: check redis-server  ## all that CI runs: check, then the tests with branch coverage
	@$(BIN)/coverage erase
	@scratch=$$(mktemp -d "$(or $(SCRATCH),$${TMPDIR:-/tmp})/liteq-XXXXXX") \
	  && trap 'rm -rf "$$scratch"' EXIT INT TERM && chmod 711 "$$scratch" \
	  && export TMPDIR="$$scratch" && set -x \
	  && $(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal \
	       --basetemp="$$scratch/t" $(PYTEST_ARGS)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

.PHONY: redis-server
redis-server:  # its tests need one: where Debian's can be had, it is
	@command -v redis-server >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	       && apt-get install -y -qq redis-server >/dev/null; } \
	  || echo "redis-server is not installed: the tests that need it are skipped (apt install redis-server)" >&2

check: $(VENV)/.dev  ## style, types and the import stack, without the tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	@! git ls-files -s 2>/dev/null | grep '^120000' || { echo "a link leads out of the repository" >&2; exit 1; }

bench: $(VENV)/.run  ## measure beside Celery, Dramatiq, Huey, RQ … (BENCH_ARGS=--help)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

storm: $(VENV)/.dev  ## minutes of random kills: what the promises are worth
	LITEQ_STORM=1 $(BIN)/python -m pytest --timeout=3600 \
	  tests/processes tests/power tests/on_redis tests/brokers \
	  tests/test_beat_storm.py tests/test_canvas_model.py tests/test_fuzz.py tests/test_walltime.py $(PYTEST_ARGS)

docs: $(VENV)/.docs  ## build the documentation into docs/_build
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:  ## remove the virtual environment and what the tools left
	rm -rf $(VENV) .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache docs/_build

# One environment, grown in steps, so that `make demo` does not wait for the linters.
# Each stamp is older than pyproject.toml when the dependencies may have changed.

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "liteq needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "no venv module (on Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PIP) install --upgrade 'pip>=25.1'   # the first pip that reads dependency groups
	@touch $@

$(VENV)/.run: pyproject.toml | $(VENV)/.pip
	@echo "setting up $(VENV) …"
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.run
	@echo "installing the development tools into $(VENV) …"
	@$(PIP) install --editable . --group dev
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.run
	@echo "installing Sphinx into $(VENV) …"
	@$(PIP) install --editable . --group docs
	@touch $@
