# Sourced by the Makefile's recipes and by the scripts beside it: where things are. Everything that is costly to make
# lies in the user's cache directory and is shared by all clones; `build/` and `.venv/` belong to one clone.
MEDKG_CACHE="${MEDKG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/medkg}"
LIBTORCH_VENV="$MEDKG_CACHE/libtorch-2.13.0"
REFERENCE_VENV="$MEDKG_CACHE/reference-2.13.0"
PEERS_VENV="$MEDKG_CACHE/peers-2.13.0"
MODELS="$MEDKG_CACHE/models"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$MEDKG_CACHE/target}"
export LIBTORCH="${LIBTORCH:-$LIBTORCH_VENV/torch}"
export MEDKG_TEST_MODEL_DIR="${MEDKG_TEST_MODEL_DIR:-$MODELS/all-MiniLM-L6-v2}"
export MEDKG_REFERENCE_PYTHON="${MEDKG_REFERENCE_PYTHON:-$REFERENCE_VENV/bin/python}"
export MEDKG_PEERS_PYTHON="${MEDKG_PEERS_PYTHON:-$PEERS_VENV/bin/python}"
# uv reads its own variables only; a package index that pip was told of holds for both.
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
export PATH="$MEDKG_CACHE/tools/bin:$PATH:$MEDKG_CACHE/debian/usr/bin"
