# demo   a timeline of the demo clip, from an installation without the development tools
# test   ruff, mypy, pytest
# bench  the figures the README promises
# mutants  planted faults, each of which a named test must catch
# Everything happens inside $(VENV); nothing outside this folder is touched.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
KEY := pyproject.toml constraints.txt
DEMO_OUT ?= build/demo
export PIP_REQUIRE_VIRTUALENV := 1

.PHONY: demo test bench mutants lint clean

demo: $(VENV)/installed
	$(BIN)/avtool localize examples/demo.mp4 -o $(DEMO_OUT) --overwrite
	@cat $(DEMO_OUT)/demo.events.srt

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/installed-bench
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

mutants: $(VENV)/installed-dev
	$(BIN)/python tests/mutants.py $(MUTANTS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@echo "making $(VENV); on Linux PyTorch brings several GB of CUDA libraries with it"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "avtool needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# One stamp per set of packages; each is remade when the requirements change, and only then.
$(VENV)/installed: $(KEY) | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(KEY) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: $(KEY) | $(BIN)/python
	$(PIP) --editable '.[dev,bench]'
	@touch $@ $(VENV)/installed $(VENV)/installed-dev
