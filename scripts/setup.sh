#!/bin/sh
# Create or complete .venv with the locked packages of the given projects, then remember that it is done.
#   scripts/setup.sh step1                shared + step1_foundations
#   scripts/setup.sh dev                  shared, every step, and the developers' tools
#   scripts/setup.sh uv                   only uv, for make lock: a new lower bound may contradict the old lock
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
        fail "the disk is full; free some space (step 1 takes 2.3 GB) and run the same command again"
    elif grep -qiE 'failed to (fetch|connect|download)|connection (refused|error|reset|timed)|name resolution|resolve host|dns error|timed out|unreachable|no matching distribution found for uv' "$log"; then
        fail "could not reach the package registry; check the network (or your pip index settings) and run the same command again"
    fi
    fail "set-up stopped (see above); run the same command again, or start over with: make distclean"
}

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then # absent, half made, or its Python is gone
    if [ -d .venv ]; then echo "replacing .venv, which is incomplete" >&2; rm -rf .venv; fi
    echo "creating .venv with $("$python" --version 2>&1)" >&2
    attempt "$python" -m venv .venv
fi
if ! .venv/bin/uv --version 2>/dev/null | grep -q "$UV_VERSION"; then
    attempt .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi
[ "$*" != uv ] || exit 0

# Step 5's engine is vLLM, which there is for Linux: its CPU build, or where an NVIDIA driver is loaded the CUDA one.
engine=""
if [ "$(uname -s)" = Linux ]; then
    engine="[cpu]"
    if [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidia0 ]; then engine="[cuda]"; fi
fi
packages=""
for name in "$@"; do
    case $name in
        dev) packages="$packages -e shared"; for step in step[1-4]_*; do packages="$packages -e $step"; done
             packages="$packages -e ./step5_serving$engine -e .[dev]" ;;
        step5) packages="$packages -e shared -e ./step5_serving$engine" ;;
        *) packages="$packages -e shared -e $(echo "$name"_*)" ;;
    esac
done

# uv reads the machine's own wheels where pip is told to; elsewhere it picks the torch build for this machine (a CPU
# build brings no CUDA packages), and where PyTorch's own index cannot be reached, the one from the normal registry.
# What pip is told about indexes and certificates (environment or pip.conf), uv is told as well: it reads neither.
pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
http_only() { for url in $1; do case $url in http*) printf '%s ' "$url" ;; esac; done; }
UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo "${PIP_FIND_LINKS:-$(pip_setting find-links)}" | tr ' ' ',')}
index=$(http_only "${PIP_INDEX_URL:-$(pip_setting index-url)}")
extra=$(http_only "${PIP_EXTRA_INDEX_URL:-$(pip_setting extra-index-url)}")
certificate=${PIP_CERT:-$(pip_setting cert)}
export UV_FIND_LINKS
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${index% }}"
[ -z "$extra" ] || export UV_INDEX="${UV_INDEX:-${extra% }}"
[ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
echo "installing the locked packages for: $* (the first time takes a minute or two)" >&2
install() { .venv/bin/uv pip install --python .venv/bin/python --constraint requirements.lock "$@" $packages; }
# shellcheck disable=SC2086
if [ -z "$UV_FIND_LINKS" ]; then
    install --torch-backend=auto >"$log" 2>&1 || attempt install
else
    attempt install
fi
touch ".venv/.$1"
