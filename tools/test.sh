#!/usr/bin/env bash
# Runs every test: those that take the whole machine one after the other, and beside them the rest.
# Its arguments go to both calls of pytest; `-n 2` has each run two tests at a time, which starves engines: for
# tests that have none, such as tests/faults.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest)
log=$(mktemp)
# Hundreds of tests start the command line: without bytecode each start compiles the package anew.
PYTHONPYCACHEPREFIX=$(mktemp -d)
export PYTHONPYCACHEPREFIX
unset PYTHONDONTWRITEBYTECODE
trap 'rm -rf "$log" "$PYTHONPYCACHEPREFIX"' EXIT

"${pytest[@]}" -m machine -o cache_dir=.pytest_cache/machine "$@" >"$log" 2>&1 &
"${pytest[@]}" -m "not machine" "$@"
rest=$?
wait $!
machine=$?
cat "$log"

# 5: the arguments left one of the two without a test.
[[ $rest == 5 && $machine == 5 ]] && exit 5
[[ $rest == 0 || $rest == 5 ]] && [[ $machine == 0 || $machine == 5 ]]
