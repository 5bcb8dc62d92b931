#!/usr/bin/env bash
# Runs every test, in two processes that each take the next file once they have done one: see tests/conftest.py.
# One of them has those that take the whole machine, one after the other, before it helps with the rest.
set -uo pipefail
cd "$(dirname "$0")/.."

# Hundreds of tests start the command line: without bytecode each start compiles the package anew.
unset PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
.venv/bin/python -m pytest -n 2 "$@"
