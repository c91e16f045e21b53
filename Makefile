# `make demo` and `make test` need nothing but Python, make and, for the tests, apt.

PYTHON ?= python3
VENV   ?= .venv
BIND   ?= 127.0.0.1:8000
# Integration tests wait for other processes for part of their time, so more runners than
# cores pay.
JOBS   ?= $(shell expr 3 \* $$(nproc))
ARGS   ?=

BIN := $(VENV)/bin

.PHONY: demo test package lint typing settings clean

demo: $(VENV)/.demo
	@echo
	@echo "The chat is at http://$(BIND)/   (Ctrl-C stops it)"
	@echo
	$(BIN)/python -m gunicorn -k gunicorn_cluster_ext.Sticky -w 4 -b $(BIND) \
	    --chdir examples chat:app

test: system-packages $(VENV)/.test tests/js/node_modules/.package-lock.json
	PATH="$(abspath $(BIN)):$$PATH" pytest -n $(JOBS) --dist worksteal $(ARGS)

# Each extra by itself, from the wheel, in an environment of its own.
package: $(VENV)/.test
	PATH="$(abspath $(BIN)):$$PATH" pytest -n $(JOBS) tests/packaging

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

typing: $(VENV)/.test
	$(BIN)/mypy --strict gunicorn_cluster_ext

# The table in docs/settings.md, from settings.py.
settings: $(VENV)/.demo
	sed -i '/^|/d' docs/settings.md
	$(BIN)/gunicorn-cluster settings >> docs/settings.md

.PHONY: system-packages
system-packages:
	@PYTHON=$(PYTHON) tests/install-system-packages

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps make an install happen again only when what it reads has changed.
$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[flask,redis]'
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

tests/js/node_modules/.package-lock.json: tests/js/package.json tests/js/package-lock.json
	npm ci --prefix tests/js --no-audit --no-fund
	@touch $@

clean:
	rm -rf $(VENV) .tox build dist *.egg-info tests/js/node_modules
