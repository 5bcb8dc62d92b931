# Each target works on a fresh machine with Python 3.11 or newer and a package index.
# Another Python: make setup PYTHON=python3.12. Another engine: make setup ACCELERATOR=cpu.
export PYTHON ACCELERATOR

BIN := .venv/bin

.PHONY: setup demo test test-long check clean
.DEFAULT_GOAL := setup

setup:
	@tools/setup.sh

demo: setup
	@$(BIN)/synthia-batch run jobs/quickstart.yaml

test: setup
	@tools/test.sh $(ARGS)

# What `make test` says that it skips: a quarter of an hour on two idle cores.
test-long: setup
	@tools/test_long.sh $(ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
