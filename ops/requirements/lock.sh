#!/usr/bin/env bash
# Writes the lock files anew out of the .in files: `make lock`. Hashes, no addresses, one file for all Python versions.
set -euo pipefail
cd "$(dirname "$0")"
compile() {
    uv pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --no-header --universal --python-version 3.10 "$@"
}
for name in tools libtorch dev; do
    echo "locking $name"
    compile "$name.in" -o "$name.lock"
done
# These interpreters see libtorch's packages through a .pth file: they are not installed twice.
mapfile -t shared < <(sed -nE 's/^([a-z0-9._-]+)==.*/--no-emit-package=\1/p' libtorch.lock)
for name in reference peers; do
    echo "locking $name"
    compile "$name.in" "${shared[@]}" -o "$name.lock"
done
