#!/usr/bin/env bash
# Runs what `make test` leaves out, and writes what it said to benchmarks/results/DATE-test-long.md.
# Ray's cluster and strace beside the tests of one process each: two cores are busy to the end.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=("${PYTHON_OF_TESTS:-.venv/bin/python}" -m pytest --exhaustive -m exhaustive -v -s --no-header)
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
result=benchmarks/results/$(date -u +%F)-test-long.md
started=$SECONDS
begun=$(date -u +%H:%M)

"${pytest[@]}" tests/faults/test_kill_everywhere.py "$@" >"$logs/1" 2>&1 &
"${pytest[@]}" tests --ignore tests/faults/test_kill_everywhere.py -o cache_dir=.pytest_cache/long "$@" >"$logs/2" 2>&1
rest=$?
wait $!
kills=$?

{
    printf '# What `make test` leaves out: `make test-long`, %s\n\n' "$(date -u +%F)"
    printf '%s cores of %s, %s, Python %s, commit %s%s. From %s UTC, %d min %d s; load at its end: %s.\n\n' \
        "$(nproc)" "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" \
        "$(free -g | awk '/^Mem/ { print $2 " GiB" }')" \
        "$("${pytest[0]}" -c 'import platform; print(platform.python_version())')" \
        "$(git rev-parse --short HEAD)" "$(git diff --quiet HEAD || echo ' and changes to it')" \
        "$begun" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$(cut -d' ' -f1-3 /proc/loadavg)"
    printf '```\n'
    grep -hv -e '^$' -e '^=* test session starts' -e '^collecting' "$logs/1" "$logs/2"
    printf '```\n'
} >"$result"
cat "$result"
[[ $rest == 0 && $kills == 0 ]]
