#!/usr/bin/env bash
# Runs every test, in two calls of pytest side by side: one has those that take the whole machine, one after the
# other, and then a third of the rest; the other has two thirds of the rest.
# Its arguments go to every call; `-n 2` has each run two tests at a time, which starves engines: for tests that
# have none, such as tests/faults.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest)
log=$(mktemp)
# Hundreds of tests start the command line: without bytecode each start compiles the package anew.
PYTHONPYCACHEPREFIX=$(mktemp -d)
export PYTHONPYCACHEPREFIX
unset PYTHONDONTWRITEBYTECODE
trap 'rm -rf "$log" "$PYTHONPYCACHEPREFIX"' EXIT
ran=none

# Notes the exit status of a call. 5: the arguments left it without a test.
note() {
    [[ $1 == 5 ]] && return
    [[ $1 == 0 && $ran != failed ]] && ran=passed || ran=failed
}

(
    "${pytest[@]}" -m machine -o cache_dir=.pytest_cache/machine "$@"
    note $?
    "${pytest[@]}" -m "not machine and later" -o cache_dir=.pytest_cache/later "$@"
    note $?
    case $ran in passed) exit 0 ;; failed) exit 1 ;; none) exit 5 ;; esac
) >"$log" 2>&1 &
"${pytest[@]}" -m "not machine and not later" "$@"
note $?
wait $!
note $?
cat "$log"

[[ $ran == none ]] && exit 5
[[ $ran == passed ]]
