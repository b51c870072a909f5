"""Rules of the code, as functions over a tree: each gives one line per violation, and none if all is well."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from .sources import crates, files, rust_mentions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDERS = ("rust", "gpu-server", "python", "tests", "examples", "bench", "ops")
# Names that say nothing about what is inside.
VAGUE = frozenset({"util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "shared"})
LONGEST = 500
# What types are called that only look like the real thing, and the libraries that make such.
STANDS_IN = re.compile(r"(?i:simulat(or|ed|ion)|mock|fake|dummy|vllmclient)")
USE_THE_REAL_THING = "use the real thing (CONTRIBUTING.md, Tests)"
# Crates that cannot forbid unsafe code outright, and the modules of theirs that may say it. PyO3's macros expand to it,
# so medkg-py cannot forbid it; its own code needs none.
UNSAFE_MODULES: dict[str, tuple[str, ...]] = {
    "gpu-server": ("src/device/driver.rs", "src/device/exit.rs", "src/model/kernels.rs", "src/model/mapped.rs"),
    "medkg-py": (),
}


def names_say_something(root: Path) -> Iterator[str]:
    """Check that no file or folder has a name for things that do not belong together."""
    for path in _sources(root):
        for part in path.relative_to(root).with_suffix("").parts:
            if part in VAGUE:
                yield f"{path.relative_to(root)}: `{part}` says nothing; name it after the idea it holds"


def files_are_short(root: Path) -> Iterator[str]:
    """Check that no file is longer than a reader can keep in mind."""
    for path in _sources(root):
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST:
            yield f"{path.relative_to(root)}: {lines} lines, {LONGEST} at most; split it by idea"


def modules_say_what_they_are(root: Path) -> Iterator[str]:
    """Check that each Rust source opens with `//!` and each Python module with a docstring."""
    for crate in crates(root):
        for path in files(crate.folder / "src", ".rs"):
            if not path.read_text(encoding="utf-8").startswith("//! "):
                yield f"{path.relative_to(root)}: must open with `//!`: what it is, why this way, what it refuses to do"
    for path in _sources(root):
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            if text.strip() and not ast.get_docstring(ast.parse(text)):
                yield f"{path.relative_to(root)}: must open with a docstring that says what it is"


def unsafe_is_named(root: Path) -> Iterator[str]:
    """Check that crates forbid unsafe code, and that where some modules may have it, only those do."""
    for crate in crates(root):
        entry = next(path for name in ("lib.rs", "main.rs") if (path := crate.folder / "src" / name).is_file())
        if crate.name not in UNSAFE_MODULES:
            if not any(rust_mentions(entry, r"#!\[forbid\(unsafe_code\)\]")):
                yield f"{entry.relative_to(root)}: must say #![forbid(unsafe_code)]"
            continue
        named = UNSAFE_MODULES[crate.name]
        allowed = f"only {' and '.join(named)} may" if named else "no file of this crate may"
        for path in files(crate.folder, ".rs"):
            if path in {crate.folder / module for module in named}:
                continue
            for line, _ in rust_mentions(path, r"\bunsafe\b|allow\(unsafe_code"):
                yield f"{path.relative_to(root)}:{line} says unsafe: {allowed}"


def nothing_is_simulated(root: Path) -> Iterator[str]:
    """Check that no type stands in for a service, a device or a breaker, and that no test replaces one by a mock.

    A test that needs a fault makes it on the real thing, or with the scripted peer of medkg-testkit.
    """
    for path in _sources(root):
        where = path.relative_to(root)
        if path.suffix == ".rs":
            for line, text in rust_mentions(path, r"\b(struct|enum|trait|type)\s+\w*" + STANDS_IN.pattern + r"\w*"):
                yield f"{where}:{line} has {text!r}: {USE_THE_REAL_THING}"
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in filter(STANDS_IN.search, names):
                yield f"{where}:{node.lineno} has {name!r}: {USE_THE_REAL_THING}"


def _sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in files(root / folder, ".rs", ".py"):
            if not re.search(r"_pb2(_grpc)?$", path.stem):
                yield path
