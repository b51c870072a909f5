"""The directions of the design, as functions over a tree: each gives one line per violation."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from .sources import Crate, Import, crates, files, imports, module_name, rust_mentions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Our crates, and which of our crates each may need. A crate that is not listed is a violation: decide where it stands.
MAY_NEED: dict[str, set[str]] = {
    "medkg-proto": set(),
    "medkg-tls": set(),
    "medkg-registry": set(),
    "medkg-telemetry": set(),
    "medkg-client": {"medkg-proto", "medkg-registry", "medkg-tls", "medkg-telemetry"},
    "medkg-py": {"medkg-client", "medkg-telemetry", "medkg-tls"},
    "medkg-gateway": {"medkg-client", "medkg-telemetry", "medkg-tls"},
    "medkg-testkit": {"medkg-proto", "medkg-tls", "medkg-telemetry"},
    "gpu-server": {"medkg-proto", "medkg-registry", "medkg-tls", "medkg-telemetry"},
}
TEST_ONLY = "medkg-testkit"
# Foreign crates with one home.
HOMES: dict[str, set[str]] = {
    "tch": {"gpu-server"},
    "torch-sys": {"gpu-server"},
    "pyo3": {"medkg-py"},
    "numpy": {"medkg-py"},
    "axum": {"medkg-gateway", "gpu-server"},  # gpu-server: the one route /metrics, on the router that tonic brings
}
# Foreign crates that a crate must do without although others have them.
REFUSED: dict[str, set[str]] = {"medkg-gateway": {"tonic", "prost"}}

# Parts of gpu-server that know no gRPC, and those that may hold tensors.
GRPC_FREE = ("engine", "device", "model", "index")
TENSORS = ("device", "model", "index")
# Files of the engine that run on its threads.
ENGINE_THREADS = ("lane.rs", "loader.rs", "precise.rs")

PYTHON = "python"
# Distributions and modules that must never come with medkg.
TORCH_FAMILY = (
    "torch",
    "torchvision",
    "transformers",
    "sentence_transformers",
    "safetensors",
    "tensorflow",
    "accelerate",
)
# Modules that `import medkg` must not load.
HEAVY = (
    "dagster",
    "docling",
    "docling_core",
    "pydantic",
    "numpy",
    "tokenizers",
    "opentelemetry",
    "lancedb",
    "pyarrow",
    "pymilvus",
)
# Modules with one home in the package.
VECTOR_HOMES = {
    "lancedb": ("medkg.vectors.lance",),
    "pyarrow": (
        "medkg.vectors.lance",
        "medkg.vectors.arrow",
        "medkg.dagster.table_files",
        "medkg.dagster.tables",
        "medkg.dagster.embedding_store",
        "medkg.dagster.evaluation",
    ),
    "pymilvus": ("medkg.vectors.milvus",),
}
NOUNS = ("gpu", "embedding", "reranking", "vector")


def crate_directions(root: Path) -> Iterator[str]:
    """Check direction 1: proto ← client ← {py, gateway}; proto ← gpu-server; testkit for tests."""
    ours = crates(root)
    names = {crate.name for crate in ours}
    for crate in ours:
        if crate.name not in MAY_NEED:
            yield f"{crate.name}: unknown crate; say in MAY_NEED of {__name__} which of our crates it may need"
            continue
        for needed in sorted(crate.normal & names - MAY_NEED[crate.name] - {crate.name}):
            hint = (
                "move it to [dev-dependencies]" if needed == TEST_ONLY else "turn the dependency round or move the code"
            )
            yield f"{crate.name} depends on {needed}: against the directions; {hint}"


def foreign_crates(root: Path) -> Iterator[str]:
    """Check direction 2: the client sees no pyo3, axum or tch; the gateway opens no channel itself."""
    for crate in crates(root):
        for name, homes in HOMES.items():
            if name in crate.normal and crate.name not in homes:
                yield f"{crate.name} depends on {name}: only {', '.join(sorted(homes))} may"
        for name in sorted(crate.normal & REFUSED.get(crate.name, set())):
            yield f"{crate.name} depends on {name}: it must reach the wire through medkg-client"


def generated_types(root: Path) -> Iterator[str]:
    """Check direction 3, first half: generated types only in `service/` folders, medkg-proto, testkit and tests."""
    for crate in crates(root):
        if crate.name in {"medkg-proto", TEST_ONLY}:
            continue
        for path in files(crate.folder / "src", ".rs"):
            inside = path.relative_to(crate.folder / "src").parts
            if inside[0] == "service" or inside == ("service.rs",):
                continue
            for line, _ in rust_mentions(path, r"\bmedkg_proto\b"):
                yield f"{path.relative_to(root)}:{line} uses medkg_proto: only service/ may know the generated types"


def grpc_free_parts(root: Path) -> Iterator[str]:
    """Check direction 3, second half: engine, device, model and index know no gRPC."""
    for part in GRPC_FREE:
        for path in _part(root / "gpu-server" / "src", part):
            for line, found in rust_mentions(path, r"\b(tonic(_\w+)?|prost(_\w+)?|medkg_proto)\b"):
                yield f"{path.relative_to(root)}:{line} uses {found}: {part} knows no gRPC; translate in service/"


def tensors_at_home(root: Path) -> Iterator[str]:
    """Check direction 4, Rust: tch only under gpu-server's device, model and index, and on the engine's threads."""
    source = root / "gpu-server" / "src"
    homes = {path for part in TENSORS for path in _part(source, part)}
    homes |= {
        path
        for path in files(source / "engine", ".rs")
        if path.relative_to(source / "engine").parts[0] in ENGINE_THREADS
    }
    for folder in (root / "gpu-server", root / "rust"):
        for path in files(folder, ".rs"):
            if path in homes:
                continue
            for line, found in rust_mentions(
                path, r"\b(tch|torch_sys)\s*::|\buse\s+(tch|torch_sys)\b|\bextern\s+crate\s+tch\b"
            ):
                yield f"{path.relative_to(root)}:{line} has `{found}`: tensors stay in {', '.join(TENSORS)}"


def torch_free_python(root: Path) -> Iterator[str]:
    """Check direction 4, Python: nothing of medkg, and no project that a user copies, imports or requires torch."""
    for folder in (PYTHON, "examples"):
        for path in files(root / folder, ".py", ".pyi"):
            for item in imports(path, root / folder):
                if item.module.split(".")[0] in TORCH_FAMILY:
                    yield f"{path.relative_to(root)}:{item.line} imports {item.module}: ask gpu-server for it instead"
    for path in (root / "pyproject.toml", root / "examples" / "pyproject.toml"):
        if not path.is_file():
            continue
        for requirement in _requirements(path):
            if requirement in TORCH_FAMILY:
                yield f"{path.relative_to(root)} requires {requirement}: pip must not install it with medkg"


def one_way_into_the_extension(root: Path) -> Iterator[str]:
    """Check direction 5: only medkg/client/native.py imports the extension module."""
    for path, name, item in _python_imports(root):
        hidden = item.module == "medkg._core" or item.module.startswith("medkg._core.")
        if hidden and name not in {"medkg.client.native", "medkg._core"}:
            yield f"{path.relative_to(root)}:{item.line} imports medkg._core: go through medkg.client"


def dagster_at_home(root: Path) -> Iterator[str]:
    """Check direction 5: only medkg/dagster/ imports dagster."""
    for path, name, item in _python_imports(root):
        if re.match(r"dagster(_\w+)?(\.|$)", item.module) and not name.startswith("medkg.dagster"):
            yield f"{path.relative_to(root)}:{item.line} imports {item.module}: only medkg/dagster/ may"


def vector_homes(root: Path) -> Iterator[str]:
    """Check direction 5: only its own module under medkg/vectors/ imports LanceDB or pymilvus."""
    for path, name, item in _python_imports(root):
        homes = VECTOR_HOMES.get(item.module.split(".")[0], (name,))
        if name not in homes:
            yield f"{path.relative_to(root)}:{item.line} imports {item.module}: only {' and '.join(homes)} may"


def light_import(root: Path) -> Iterator[str]:
    """Check direction 5: what `import medkg` runs loads none of the heavy modules."""
    source = root / PYTHON
    modules = {module_name(path, source): path for path in files(source, ".py")}
    waiting, seen = ["medkg"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        for item in imports(modules[name], source):
            if not item.at_import_time:
                continue
            if item.module.split(".")[0] in HEAVY:
                yield (
                    f"{modules[name].relative_to(root)}:{item.line} imports {item.module} at import time, and "
                    "`import medkg` runs this file: import it where it is used, or under TYPE_CHECKING"
                )
            parts = item.module.split(".")
            waiting += [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def same_noun(root: Path) -> Iterator[str]:
    """Check direction 6: a service has a file in proto, client, gpu-server and PyO3, a Python class and a test."""
    ours: dict[str, Crate] = {crate.name: crate for crate in crates(root)}
    for noun in NOUNS:
        if not (root / "proto" / "medkg" / "v1" / f"{noun}.proto").is_file():
            yield f"proto/medkg/v1/{noun}.proto: the service {noun} has no proto file"
        for name in ("medkg-client", "gpu-server", "medkg-py", "medkg-gateway"):
            crate = ours.get(name)
            if crate and not any(path.stem == noun for path in files(crate.folder / "src", ".rs")):
                yield f"{crate.folder.relative_to(root)}/src: no file {noun}.rs for the service {noun}"
        client = root / PYTHON / "medkg" / "client" / f"{noun}.py"
        wanted = f"{noun.capitalize()}Client"
        text = client.read_text(encoding="utf-8") if client.is_file() else ""
        if client.parent.is_dir() and not re.search(rf"\bclass {wanted}\b", text):
            yield f"{client.relative_to(root)}: no class {wanted} for the service {noun}"
        tests = [*files(root / "tests", ".py")]
        if tests and not any(noun in path.stem.split("_") for path in tests):
            yield f"tests: no test_*{noun}*.py for the service {noun}"


def _part(source: Path, part: str) -> Iterator[Path]:
    if (source / f"{part}.rs").is_file():
        yield source / f"{part}.rs"
    yield from files(source / part, ".rs")


def _python_imports(root: Path) -> Iterator[tuple[Path, str, Import]]:
    source = root / PYTHON
    for path in files(source, ".py", ".pyi"):
        for item in imports(path, source):
            yield path, module_name(path, source), item


def _requirements(path: Path) -> Iterator[str]:
    """Give the names of the distributions that pip may install for a project, extras included."""
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    extras = project.get("optional-dependencies", {}).values()
    for requirement in [*project.get("dependencies", []), *(item for extra in extras for item in extra)]:
        yield re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("-", "_")
