#!/usr/bin/env bash
# Runs what `make test` says that it leaves out, and keeps what it said, with its date and machine, in
# benchmarks/results/. The pairs of kills take as long as all the rest: the two run side by side.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON_OF_TESTS:-.venv/bin/python}
pytest=("$python" -m pytest --exhaustive -m exhaustive -v -s --no-header)
kills=tests/faults/test_kill_everywhere.py
result=benchmarks/results/$(date -u +%F)-test-long.md
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
begun=$(date -u +%H:%M)
SECONDS=0

"${pytest[@]}" "$kills" -o cache_dir=.pytest_cache/kills "$@" 2>&1 | tee "$logs/kills" &
"${pytest[@]}" tests --ignore "$kills" "$@" 2>&1 | tee "$logs/rest"
rest=$?
wait $!
pairs=$?

describe_machine() {
    printf '%s cores of %s, %s, Python %s, commit %s' "$(nproc)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)" \
        "$(free -g | awk '/^Mem/ { print $2 " GB" }')" \
        "$("$python" -c 'import platform; print(platform.python_version())')" "$(git rev-parse --short HEAD)"
    git diff --quiet HEAD || printf ' and changes to it'
}

{
    printf '# What `make test` leaves out, %s\n\n' "$(date -u +%F)"
    printf '`make test-long`: %s. From %s UTC on, %d min %d s; load at the end %s.\n\n```\n' "$(describe_machine)" \
        "$begun" $((SECONDS / 60)) $((SECONDS % 60)) "$(cut -d' ' -f1 /proc/loadavg)"
    grep -hv -e '^$' -e 'test session starts' -e '^collecting' "$logs/kills" "$logs/rest"
    printf '```\n'
} >"$result"
echo "kept in $result"
[[ $rest == 0 && $pairs == 0 ]]
