#!/usr/bin/env bash
# Builds the wheel and installs it into .venv, so that tests see what `pip install medkg` gives. Skipped while nothing
# that goes into it has changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=ops/dev/environment.sh
. ops/dev/environment.sh
inputs() { git ls-files -co --exclude-standard -- Cargo.toml Cargo.lock pyproject.toml README.md LICENSE python rust; }
key="$( { inputs | while read -r file; do [ ! -f "$file" ] || sha256sum "$file"; done; cat .venv/.medkg-stamp; } | sha256sum)"
[ "$(cat build/wheel.stamp 2>/dev/null)" != "$key" ] || exit 0
echo "setup: building the wheel"
mkdir -p build
rm -rf dist
.venv/bin/maturin build --quiet --release --locked --out dist
uv pip install --quiet --no-deps --reinstall --python .venv/bin/python dist/medkg-*.whl
echo "$key" >build/wheel.stamp
