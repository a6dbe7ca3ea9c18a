# The two commands: `make quickstart` runs the main job end to end, `make test` passes the tests. They share .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

# Tests that share nothing can run in several processes (PROCESSES=2, on cores that are idle: each one starts torch anew);
# the others share one Ray and one S3 server, so one process runs them.
PROCESSES ?= 0
APART := tests/ssl_core tests/test_task_contract.py
RUN_APART := $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(APART)
RUN_SHARED := $(BIN)/python -m pytest $(APART:%=--ignore=%)

.PHONY: quickstart test test-slow coverage check format lock ui clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "pretext needs Python 3.11 ($(PYTHON) not found); set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into $(VENV), some minutes the first time" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(VENV)/.installed  ## digits: ingest, pretrain with 2 workers, evaluate, register
	$(BIN)/pretext quickstart

test: $(VENV)/.installed  ## the fast tests
	$(RUN_APART)
	$(RUN_SHARED)

test-slow: $(VENV)/.installed  ## the tests that take minutes: faults, kills, outages
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/.installed  ## the fast tests, and which lines they run; fails below the floor in pyproject.toml
	$(RUN_APART) --durations=15 --cov --cov-report= --cov-fail-under=0
	$(RUN_SHARED) --durations=15 --cov --cov-append --cov-report=term

check: $(VENV)/.installed  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed  ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(VENV)/.installed  ## open the MLflow UI on the runs of this folder
	$(BIN)/pretext ui

lock:  ## resolve anew and write constraints.txt (minutes)
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[dev]' -c <(echo 'torch==2.13.0')
	{ printf '%s\n' '# The lock: every version that was installed and tested together on Python 3.11.' '# Regenerate: make lock'; \
	  .venv-lock/bin/python -m pip freeze --exclude pretext-ssl | sed 's/+cpu//'; } > constraints.txt
	rm -rf .venv-lock
lock: SHELL := bash

clean:  ## remove the virtual environment and caches (never .pretext)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage *.egg-info
