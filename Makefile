# Every target sets up what it needs: a virtual environment in .venv, made from Python 3.11 or newer alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_HOME ?= .run
# Many tests wait for processes of their own, so half as many workers again as cores keep the cores busy.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(6, (os.cpu_count() or 1) * 3 // 2))')

.PHONY: run test demo check bench soak mutants clean

run: $(VENV)/.core
	METRICSD_HOME="$(abspath $(RUN_HOME))" $(BIN)/metricsd run --with-cloud

demo: $(VENV)/.core
	$(BIN)/metricsd demo

test: check
	$(BIN)/pytest -m "not soak" -n $(WORKERS) --dist worksteal $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m bench

soak: $(STAMP)
	$(BIN)/pytest -m soak --timeout 0

mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

clean:
	rm -rf $(VENV) $(RUN_HOME) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The folder exists before pip ends, so a stamp file says that it did.
$(VENV)/.core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "metricsd needs Python 3.11 or newer; name one with PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(STAMP): pyproject.toml $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
