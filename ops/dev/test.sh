#!/usr/bin/env bash
# Runs the Rust tests, then the Python tests; `--slow` adds the slow ones. Ends with both runners' closing lines.
set -uo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=ops/dev/environment.sh
. ops/dev/environment.sh
select=(-m "not slow")
[ "${1:-}" != "--slow" ] || select=() MEDKG_TEST_LIMIT="${MEDKG_TEST_LIMIT:-4h}"
mkdir -p build
status=0

# Release, so that dependencies are compiled once for tests, server and wheel; overflow checks are on there too.
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --release --locked --workspace --profile medkg 2>&1 | tee build/rust.log || status=1
    cp target/nextest/medkg/junit.xml build/junit-rust.xml # nextest keeps its reports in the workspace
else
    echo "test: cargo-nextest is not installed; cargo test runs the same tests"
    cargo test --release --locked --workspace --lib --bins --tests 2>&1 | tee build/rust.log || status=1
fi

# Tests in Python start it too: a server that can be told that the processor is a GPU (tests/server/played.py).
tests="$(cargo test --release --locked --workspace --bin gpu-server --no-run --message-format=json 2>/dev/null |
    .venv/bin/python -c 'import json, sys; print(*(line["executable"] for line in map(json.loads, sys.stdin) if line.get("executable")))')"
[ -z "$tests" ] || ops/dev/place.sh "$tests" build/gpu-server-tests || status=1

# Each test has a time limit of its own; this one is for a runner that hangs. Modules stay in their order: by the number of
# tests, as is the default, those with one long test would come last, and one of two workers would be idle meanwhile.
timeout --signal=INT --kill-after=60 "${MEDKG_TEST_LIMIT:-40m}" .venv/bin/python -m pytest -n "${MEDKG_TEST_WORKERS:-2}" --dist loadscope --no-loadscope-reorder --junitxml build/junit-python.xml "${select[@]}" \
    2>&1 | tee build/python.log || status=1

[ "${1:-}" != "--slow" ] || ops/dev/free-threaded.sh || status=1

echo
grep -E '^ *Summary|^test result' build/rust.log | tail -n 1
tail -n 1 build/python.log
exit "$status"
