#!/usr/bin/env bash
# Everything that is checked without running a test. All checks run; the exit status says whether one failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=ops/dev/environment.sh
. ops/dev/environment.sh
failed=()
check() {
    local name=$1
    shift
    echo "lint: $name"
    "$@" || failed+=("$name")
}
stubs() { (cd build && ../.venv/bin/python -m mypy.stubtest medkg._core --ignore-disjoint-bases); }
mkdir -p build
check "rustfmt" cargo fmt --all --check
check "clippy" cargo clippy --quiet --release --locked --workspace --all-targets -- -D warnings
check "buf lint" buf lint proto
check "buf format" buf format --diff --exit-code proto
check "buf breaking" buf breaking proto --against proto/baseline.binpb
check "ruff" .venv/bin/ruff check .
check "ruff format" .venv/bin/ruff format --check .
check "mypy" .venv/bin/mypy
check "basedpyright" .venv/bin/basedpyright --level error
check "stubtest" stubs
if [ ${#failed[@]} -gt 0 ]; then
    echo "lint: failed: ${failed[*]}"
    exit 1
fi
echo "lint: all checks passed"
