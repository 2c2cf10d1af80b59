#!/bin/sh
# llama-cpp-python in an environment of its own, bench/.venv-llama, compiled for this machine. Takes minutes, once.
# Usage: bench/peers/llama_cpp.sh PYTHON
set -eu

python=$(command -v "${1:-python3}")
case $python in
    /*) ;;
    *) python=$PWD/$python ;; # as make gives it: relative to where this was started
esac
cd "$(dirname "$0")/.."
if [ -n "${STOKER_BENCH_LLAMA_PYTHON:-}" ]; then
    exit 0 # an environment that exists already is used instead
fi
if [ -x .venv-llama/bin/python ] && .venv-llama/bin/python -c 'import llama_cpp' 2>/dev/null; then
    exit 0
fi
../scripts/ensure-compiler
echo "stoker: compiling llama-cpp-python for the comparison (some minutes, once)" >&2
"$python" -m venv .venv-llama
.venv-llama/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
CMAKE_ARGS="-DGGML_NATIVE=ON" .venv-llama/bin/python -m pip install --quiet --disable-pip-version-check \
    --no-cache-dir llama-cpp-python
