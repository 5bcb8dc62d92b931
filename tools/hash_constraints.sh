#!/usr/bin/env bash
# Writes constraints-hashes.txt: the versions of constraints.txt with the hashes of their files in the index.
# Run it after each change of constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

{
    echo "# Written by tools/hash_constraints.sh from constraints.txt: what is installed must have one of these hashes."
    .venv/bin/uv pip compile --quiet --no-deps --no-annotate --no-header --universal --python-version 3.11 \
        --generate-hashes constraints.txt
} >constraints-hashes.txt.new
mv constraints-hashes.txt.new constraints-hashes.txt
