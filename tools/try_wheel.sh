#!/usr/bin/env bash
# Installs a built wheel as a user does, without the repository, and makes the demo's dataset in an empty directory.
#   tools/try_wheel.sh pip|uv-tool|uvx WHEEL [FLAGS OF demo...]
# UV_FIND_LINKS or PIP_FIND_LINKS may name a folder with the CPU build of torch; otherwise it is PyTorch's index.
set -euo pipefail

way=$1 wheel=$(realpath "$2")
shift 2
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
mkdir empty
package="synthia-batch[cpu,demo] @ file://$wheel"
index=https://download.pytorch.org/whl/cpu

case $way in
    pip)
        python3 -m venv venv
        options=()
        if [[ -z ${PIP_FIND_LINKS:-} ]]; then options=(--extra-index-url "$index"); fi
        venv/bin/pip install --quiet "${options[@]}" "$package"
        program=("$home/venv/bin/synthia-batch")
        ;;
    uv-tool | uvx)
        options=(--python 3.11)
        if [[ -z ${UV_FIND_LINKS:-} ]]; then options+=(--torch-backend cpu); fi
        if [[ $way == uvx ]]; then
            program=(uvx "${options[@]}" --from "$package" synthia-batch)
        else
            export UV_TOOL_DIR=$home/tools UV_TOOL_BIN_DIR=$home/bin
            uv tool install --quiet "${options[@]}" "$package"
            program=("$home/bin/synthia-batch")
        fi
        ;;
    *) echo "expected pip, uv-tool or uvx, got $way" >&2 && exit 2 ;;
esac

cd empty
"${program[@]}" --version
"${program[@]}" demo "$@"
"${program[@]}" verify outputs/demo-*
