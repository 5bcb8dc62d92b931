# Each target works on a fresh machine with Python 3.11 or newer and a package index.
# Another Python: make setup PYTHON=python3.12. Another engine: make setup ACCELERATOR=cpu.
export PYTHON ACCELERATOR

BIN := .venv/bin

.PHONY: setup demo test test-long simulate bench gpu-check check clean
.DEFAULT_GOAL := setup

setup:
	@tools/setup.sh

demo: setup
	@$(BIN)/synthia-batch run jobs/quickstart.yaml

test: setup
	@tools/test.sh $(ARGS)

# What `make test` says that it skips: about an hour on two cores.
test-long: setup
	@tools/test_long.sh $(ARGS)

# Whole runs in a simulated world, a seed each; a failing one prints how to replay it.
SEEDS ?= 0..2000
simulate: setup
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

# Side by side with what a user would take instead: about an hour on two cores that do nothing else.
# A smaller one: make bench ARGS="--prompts 16 --max-tokens 16 --rounds 1 --sides ours,bare".
bench: setup
	@$(BIN)/python -m benchmarks.throughput $(ARGS)

# What the README promises about GPUs, proved on this machine's: under ten minutes, a dated result in
# benchmarks/results. On CPUs, with small numbers, it tests itself: make gpu-check DEVICE=cpu.
gpu-check: setup
	@$(BIN)/python -m benchmarks.gpu_check --device $(or $(DEVICE),auto) $(ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
