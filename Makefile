# Each target works on a fresh machine with Python 3.11 or newer and a package index.
# Another Python: make setup PYTHON=python3.12. Another engine: make setup ACCELERATOR=cpu.
export PYTHON ACCELERATOR

BIN := .venv/bin

.PHONY: help setup demo test test-fast test-long simulate bench gpu-check check docs clean
.DEFAULT_GOAL := setup

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*  ## (.+)/\1\t\2/p' Makefile | awk -F'\t' '{ printf "make %-10s  %s\n", $$1, $$2 }'

setup:  ## .venv with the engine, the tools and everything that tests need
	@tools/setup.sh

demo: setup  ## a first job: 28 questions to the embedded model
	@$(BIN)/synthia-batch run jobs/quickstart.yaml

test: setup  ## every test but the longest; a part of them: make test ARGS="tests/inputs"
	@tools/test.sh $(ARGS)

# Without an engine, Ray and real kills. Of a change, most is seen here; `make test` has the rest.
FAST := tests/core tests/inputs tests/job tests/models tests/scheduler tests/storage tests/test_imports.py
test-fast: setup  ## tests without engines, Ray and kills: four minutes on two cores
	@tools/test.sh -m "not machine and not long" $(FAST) $(ARGS)

test-long: setup  ## what `make test` says that it skips: about an hour on two cores
	@tools/test_long.sh $(ARGS)

# A failing run prints how to replay it.
SEEDS ?= 0..2000
simulate: setup  ## whole runs in a simulated world, a seed each: make simulate SEEDS=2000..4000
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

# About an hour on two cores that do nothing else.
# A smaller one: make bench ARGS="--prompts 16 --max-tokens 16 --rounds 1 --sides ours,bare".
bench: setup  ## throughput side by side with what a user would take instead
	@$(BIN)/python -m benchmarks.throughput $(ARGS)

# On CPUs, with small numbers, it tests itself: make gpu-check DEVICE=cpu.
gpu-check: setup  ## what the docs promise about GPUs, proved on this machine's: a dated result in benchmarks/results
	@$(BIN)/python -m benchmarks.gpu_check --device $(or $(DEVICE),auto) $(ARGS)

check: setup  ## style and types: ruff, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: setup  ## the site of docs/ into site/; fails at broken links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean:  ## removes .venv and everything that tools have written
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
