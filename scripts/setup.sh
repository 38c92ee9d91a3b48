#!/bin/sh
# Create or complete .venv with the locked packages of the given projects, then remember that it is done.
#   scripts/setup.sh step1                shared + step1_foundations
#   scripts/setup.sh dev                  shared, every step, and the developers' tools
# A run that was interrupted is simply run again: uv installs what is missing, and the stamp comes last.
set -eu
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9
python=${PYTHON:-python3}

fail() { echo "error: $*" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 ||
    fail "$python not found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 ..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "$("$python" --version 2>&1) is too old: Python 3.11 or newer is needed (make PYTHON=/path/to/python3.12 ...)"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
attempt() { # run a command quietly; on failure explain it
    "$@" >"$log" 2>&1 && return
    cat "$log" >&2
    if grep -qiE 'no space left|ENOSPC' "$log"; then
        fail "the disk is full; free some space (step 1 takes 1.5 GB) and run the same command again"
    elif grep -qiE 'connect|network|resolve host|name resolution|timed out|dns|unreachable|no matching distribution|not found in the package registry' "$log"; then
        fail "could not reach the package registry; check the network (or your pip index settings) and run the same command again"
    fi
    fail "set-up stopped (see above); run the same command again, or start over with: make distclean"
}

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then # absent, half made, or its Python is gone
    rm -rf .venv
    echo "creating .venv with $("$python" --version 2>&1)" >&2
    attempt "$python" -m venv .venv
fi
if ! .venv/bin/uv --version 2>/dev/null | grep -q "$UV_VERSION"; then
    attempt .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi

packages=""
for name in "$@"; do
    case $name in
        dev) packages="$packages -e shared"; for step in step[1-5]_*; do packages="$packages -e $step"; done
             packages="$packages -e .[dev]" ;;
        *) packages="$packages -e shared -e $(echo "$name"_*)" ;;
    esac
done

# uv reads the machine's own wheels where pip is told to; elsewhere it picks the torch build for this machine (a CPU
# build brings no CUDA packages), and where PyTorch's own index cannot be reached, the one from the normal registry.
UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
export UV_FIND_LINKS
echo "installing the locked packages for: $* (the first time takes a minute or two)" >&2
install() { .venv/bin/uv pip install --python .venv/bin/python --constraint requirements.lock "$@" $packages; }
# shellcheck disable=SC2086
if [ -z "$UV_FIND_LINKS" ]; then
    install --torch-backend=auto >"$log" 2>&1 || attempt install
else
    attempt install
fi
touch ".venv/.$1"
