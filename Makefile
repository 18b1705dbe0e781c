# Everything a newcomer runs. Each target sets up what it needs in .venv (and .node for the npm peers).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEEDS  ?= 10000
# Processes that share the tests: one for each core.
WORKERS ?= auto

.PHONY: demo test check dist bench simulate setup setup-bench clean

# Python packages: installed once, again when pyproject.toml changes.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[cli]" --group dev
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

setup: $(VENV)/.ready
setup-bench: $(VENV)/.ready-bench

demo: setup
	$(BIN)/openline demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is published: built, looked into, and tried in an empty environment of each Python that is here.
dist: setup
	$(BIN)/python -m tests.dist

bench: setup-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

simulate: setup
	OPENLINE_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation -n $(WORKERS) -q --timeout 3600

clean:
	rm -rf $(VENV) .node dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
