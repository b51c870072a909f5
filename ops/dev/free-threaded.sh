#!/usr/bin/env bash
# The extension on CPython without the GIL: it is compiled for it, and where such an interpreter is installed
# (PYTHON_FREE_THREADED, python3.14t or python3.13t), its wheel is built and tests/client/test_threads.py runs on it.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=ops/dev/environment.sh
. ops/dev/environment.sh
interpreter="${PYTHON_FREE_THREADED:-$(command -v python3.14t || command -v python3.13t || true)}"
mkdir -p build/free-threaded
if [ -z "$interpreter" ]; then
    echo "free-threaded: no python3.14t or python3.13t here; compiling for it, not running it"
    cat >build/free-threaded/pyo3.txt <<CONFIG
implementation=CPython
version=3.14
shared=true
abi3=false
build_flags=Py_GIL_DISABLED
suppress_build_script_link_lines=true
CONFIG
    PYO3_CONFIG_FILE="$PWD/build/free-threaded/pyo3.txt" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/free-threaded" \
        cargo check --quiet --locked -p medkg-py
    echo "free-threaded: it compiles"
    exit 0
fi
uv venv --quiet --clear --python "$interpreter" build/free-threaded/venv
python=build/free-threaded/venv/bin/python
.venv/bin/maturin build --quiet --release --locked --interpreter "$python" --out build/free-threaded/dist
uv pip install --quiet --python "$python" build/free-threaded/dist/medkg-*.whl pytest pytest-timeout pytest-xdist
"$python" -c 'import sys, medkg; medkg.connect; assert not sys._is_gil_enabled(), "importing medkg turned the GIL on"'
"$python" -m pytest -q -n0 tests/client/test_threads.py
