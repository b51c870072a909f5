"""The directions of the design hold, and each rule can fail: a small tree that breaks it is caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import directions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Rule = Callable[[Path], Iterator[str]]
    MakeTree = Callable[[dict[str, str]], Path]

RULES = [
    directions.crate_directions,
    directions.foreign_crates,
    directions.generated_types,
    directions.grpc_free_parts,
    directions.tensors_at_home,
    directions.torch_free_python,
    directions.one_way_into_the_extension,
    directions.dagster_at_home,
    directions.vector_homes,
    directions.light_import,
    directions.same_noun,
]


def workspace(**crates: str) -> dict[str, str]:
    """Make a workspace: crate name (with `_` for `-`) → the text of its manifest after [package]."""
    tree = {"Cargo.toml": '[workspace]\nresolver = "3"\nmembers = ["rust/*", "gpu-server"]\n'}
    for name, manifest in {"gpu_server": "", "medkg_proto": "", **crates}.items():
        dashed = name.replace("_", "-")
        folder = dashed if dashed == "gpu-server" else f"rust/{dashed}"
        tree[f"{folder}/Cargo.toml"] = f'[package]\nname = "{dashed}"\nversion = "0.1.0"\nedition = "2024"\n{manifest}'
        tree[f"{folder}/src/lib.rs"] = "//! A crate.\n#![forbid(unsafe_code)]\n"
    return tree


def needs(*names: str, section: str = "dependencies") -> str:
    """Make a section of a manifest that names crates of the same workspace."""
    lines = [f'{name} = {{ path = "../{name}" }}' for name in names]
    return "\n".join([f"[{section}]", *lines, ""])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Rule, repository: Path) -> None:
    """Judge the repository itself."""
    violations = sorted(set(rule(repository)))
    assert not violations, "\n" + "\n".join(violations)


SERVER = "gpu-server/src"
BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (
        directions.crate_directions,
        workspace(medkg_proto=needs("medkg-client"), medkg_client=""),
        "medkg-proto depends on medkg-client",
    ),
    (
        directions.crate_directions,
        workspace(gpu_server='[dependencies]\nmedkg-client = { path = "../rust/medkg-client" }\n', medkg_client=""),
        "gpu-server depends on medkg-client",
    ),
    (
        directions.crate_directions,
        workspace(medkg_client=needs("medkg-testkit"), medkg_testkit=""),
        "medkg-client depends on medkg-testkit",
    ),
    (directions.crate_directions, workspace(medkg_extra=""), "medkg-extra: unknown crate"),
    (
        directions.foreign_crates,
        # A renamed dependency is what it is, not what it is called.
        workspace(medkg_client='[dependencies]\nbinding = { package = "pyo3", version = "0.30" }\n'),
        "medkg-client depends on pyo3",
    ),
    (
        directions.foreign_crates,
        workspace(medkg_gateway='[dependencies]\ntonic = "0.14"\n'),
        "medkg-gateway depends on tonic",
    ),
    (
        directions.generated_types,
        {**workspace(medkg_client=""), "rust/medkg-client/src/call.rs": "//! x\nuse medkg_proto::v1::Tensor;\n"},
        "rust/medkg-client/src/call.rs:2 uses medkg_proto",
    ),
    (
        directions.grpc_free_parts,
        {f"{SERVER}/engine/queue.rs": "//! tonic in a comment is fine.\nfn f() -> tonic::Status { todo() }\n"},
        f"{SERVER}/engine/queue.rs:2 uses tonic",
    ),
    (directions.grpc_free_parts, {f"{SERVER}/index.rs": "use prost_types::Duration;\n"}, "index.rs:1 uses prost_types"),
    (
        directions.tensors_at_home,
        {f"{SERVER}/engine/lane.rs": "use tch::Tensor;\n", f"{SERVER}/engine/queue.rs": "\nuse tch::{Tensor};\n"},
        f"{SERVER}/engine/queue.rs:2 has `use tch`",
    ),
    (
        directions.torch_free_python,
        {"python/medkg/a.py": "def f():\n    import torch.cuda\n"},
        "python/medkg/a.py:2 imports torch.cuda",
    ),
    (
        directions.torch_free_python,
        {"python/medkg/a.py": "import importlib\nimportlib.import_module('transformers')\n"},
        "python/medkg/a.py:2 imports transformers",
    ),
    (
        directions.torch_free_python,
        {"pyproject.toml": '[project.optional-dependencies]\nchunking = ["sentence-transformers[x] >= 3"]\n'},
        "pyproject.toml requires sentence_transformers",
    ),
    (
        directions.one_way_into_the_extension,
        {
            "python/medkg/client/native.py": "from .. import _core\n",
            "python/medkg/chunking/a.py": "from .. import _core\n",
        },
        "python/medkg/chunking/a.py:1 imports medkg._core",
    ),
    (
        directions.vector_homes,
        {"python/medkg/vectors/lance.py": "import lancedb\n", "python/medkg/vectors/b.py": "from pymilvus import x\n"},
        "python/medkg/vectors/b.py:1 imports pymilvus",
    ),
    (
        directions.dagster_at_home,
        {"python/medkg/dagster/a.py": "import dagster\n", "python/medkg/b.py": "from dagster_k8s import x\n"},
        "python/medkg/b.py:1 imports dagster_k8s.x",
    ),
    (
        directions.light_import,
        {
            "python/medkg/__init__.py": "from medkg.config import Config\n",
            "python/medkg/config.py": "from .deep import x\n",
            "python/medkg/deep.py": "import pydantic\n",
            "python/medkg/lazy.py": "import numpy\n",
        },
        "python/medkg/deep.py:1 imports pydantic",
    ),
    (
        directions.same_noun,
        {**workspace(medkg_client=""), "rust/medkg-client/src/service/gpu.rs": "//! x\n"},
        "no file embedding.rs for the service embedding",
    ),
    (
        directions.same_noun,
        {**workspace(), "python/medkg/client/gpu.py": "class GpuClient: ...\n"},
        "no class VectorClient",
    ),
]


@pytest.mark.parametrize(
    ("rule", "tree", "expected"), BROKEN, ids=[f"{b[0].__name__}-{i}" for i, b in enumerate(BROKEN)]
)
def test_a_tree_that_breaks_the_rule_is_caught(
    rule: Rule, tree: dict[str, str], expected: str, make_tree: MakeTree
) -> None:
    """Judge a tree with one mistake in it: the violation says what and where."""
    violations = list(rule(make_tree(tree)))
    assert any(expected in violation for violation in violations), violations


def test_what_is_allowed_passes(make_tree: MakeTree) -> None:
    """Judge a tree that uses every permission: no rule is stricter than the design."""
    tree = workspace(
        medkg_proto="",
        medkg_tls="",
        medkg_testkit=needs("medkg-proto"),
        medkg_client=needs("medkg-proto", "medkg-tls") + needs("medkg-testkit", section="dev-dependencies"),
        medkg_py=needs("medkg-client"),
    )
    tree["rust/medkg-client/src/service/embedding.rs"] = "//! x\nuse medkg_proto::v1;\n"
    tree["rust/medkg-client/src/call.rs"] = '//! medkg_proto\n// use medkg_proto::v1;\nconst A: &str = "medkg_proto";\n'
    tree[f"{SERVER}/model/bert.rs"] = "use tch::Tensor; /* tonic */ const C: char = '\"'; // prost\n"
    tree["python/medkg/__init__.py"] = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\ndef f():\n    import pydantic\n"
    )
    tree["python/medkg/client/native.py"] = "import medkg._core\n"
    root = make_tree(tree)
    for rule in RULES:
        if rule is not directions.same_noun:
            assert list(rule(root)) == [], rule.__name__
