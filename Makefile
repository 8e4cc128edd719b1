# Everything is installed into .venv, from pyproject.toml alone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test install bench clean

run: .venv/installed
	$(BIN)/manyminds run

test: .venv/tested
	$(BIN)/python -m pytest

install: .venv/installed

bench: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_adaptation.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_scheduling.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_networks.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_low_rank.py

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
