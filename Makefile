# `make` lists the targets. Each one is what its comment says, here and in CI alike.
.DEFAULT_GOAL := help
.PHONY: help install up demo test check fix bench chaos test-gpu lock clean

# The Python that makes .venv; everything else runs in it.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
# Which build of torch: auto, cpu or cuda.
TORCH ?= auto
# Further arguments of pytest, or the demo: make test ARGS='-k lease'; -n0 runs the tests in one process.
ARGS ?=
BIN := .venv/bin

# Spinning OpenMP threads slow a step 40 times as soon as a second process runs; no test may ask a hub; and forked
# tokenizer threads would only compete with torch's.
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false
test test-gpu: export HF_HUB_OFFLINE := 1

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

install:  ## set up .venv, torch and the models; instant when nothing has changed
	@command -v $(PYTHON) >/dev/null || { echo "install: $(PYTHON) is not here. Install Python 3.11 (Debian 12: apt-get install python3 python3-venv) or name yours: make install PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m scripts.install --torch $(TORCH)

up: install  ## start everything on this machine: queue, API, worker, Flower
	@$(BIN)/tandem up

demo: install  ## fine-tune an adapter and use it, end to end
	@$(BIN)/python examples/demo.py $(ARGS)

# One process a core (up to 4, of which each may start a whole service), so one thread each: a second one would only
# wait for another process's.
test: install  ## run every test that needs no GPU
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 $(ARGS)

check: install  ## lint, format, types, imports and container files: what CI checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy -p scripts
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml docker-compose.gpu.yml
	$(BIN)/docker-compose --env-file scripts/compose-check.env config -q
	$(BIN)/docker-compose --env-file scripts/compose-check.env -f docker-compose.yml -f docker-compose.gpu.yml config -q

fix: install  ## repair what the linter and the formatter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## run the benchmarks, each against its peer in one run
	@PYTHONPATH=. $(BIN)/python bench/jobs.py
	@PYTHONPATH=. $(BIN)/python bench/generate.py
	@PYTHONPATH=. $(BIN)/python bench/adapters.py
	@PYTHONPATH=. $(BIN)/python bench/latency.py
	@PYTHONPATH=. $(BIN)/python bench/streams.py
	@PYTHONPATH=. $(BIN)/python bench/encoders.py
	@PYTHONPATH=. $(BIN)/python bench/batch.py
	@PYTHONPATH=. $(BIN)/python bench/co_serving.py
	@PYTHONPATH=. $(BIN)/python bench/finetune.py
	@PYTHONPATH=. $(BIN)/python bench/quality.py

chaos: install  ## try to break the promise about jobs: 1,000 kills of workers, 100 of the server; about 15 minutes
	@$(BIN)/python -m tests.chaos.storm $(ARGS)

test-gpu: install  ## run the tests that need a CUDA device
	@$(BIN)/pytest -m gpu tests/gpu $(ARGS)

# It needs uv alone: pins that no longer fit would stop `install`.
lock:  ## pin every dependency anew in constraints.txt
	@test -x $(BIN)/uv || $(MAKE) install
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --upgrade --quiet --python-version 3.11 --custom-compile-command 'make lock' --output-file constraints.txt

clean:  ## remove .venv and what tools leave behind; models and job data stay
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis demo-output
	find api bench examples scripts tandem tests worker -name __pycache__ -type d -prune -exec rm -rf {} +
