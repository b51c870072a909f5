#!/usr/bin/env bash
# place.sh BUILT TARGET: puts a program in its place in one step, so that whoever starts it meanwhile finds the old one or
# the new one, whole. One that is the same stays.
set -euo pipefail
cmp -s "$1" "$2" && exit 0
mkdir -p "$(dirname "$2")"
install -m 755 "$1" "$2.new.$$"
mv -f "$2.new.$$" "$2"
