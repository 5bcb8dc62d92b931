#!/usr/bin/env bash
# Runs every test: those that take the whole machine one after the other, and beside them the rest, two at a
# time: half of what those do is to wait. Its arguments go to both calls of pytest.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

"${pytest[@]}" -m machine -o cache_dir=.pytest_cache/machine "$@" >"$log" 2>&1 &
"${pytest[@]}" -m "not machine" -n 2 --dist worksteal "$@"
rest=$?
wait $!
machine=$?
cat "$log"

# 5: the arguments left one of the two without a test.
[[ $rest == 5 && $machine == 5 ]] && exit 5
[[ $rest == 0 || $rest == 5 ]] && [[ $machine == 0 || $machine == 5 ]]
