"""Read the sources that the rules judge: crates from cargo, Rust without comments, imports from Python's own parser."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SKIPPED_FOLDERS = frozenset(
    {".git", ".venv", "target", "build", "dist", "node_modules", "__pycache__", "gen", ".dagster", ".medkg"}
)


@dataclass(frozen=True)
class Crate:
    """A crate of the workspace."""

    name: str
    folder: Path
    normal: frozenset[str]
    """Crates it needs to build and to run, build scripts included."""
    dev: frozenset[str]
    """Crates that only its tests need."""


@dataclass(frozen=True)
class Import:
    """One import in a Python file."""

    module: str
    """Absolute dotted name, as far as it can be told: `from a import b` gives `a.b`."""
    line: int
    at_import_time: bool
    """True if it runs when the file is imported: at the top level and not for type checkers only."""


def crates(root: Path) -> list[Crate]:
    """Read the workspace through `cargo metadata`, which knows renames and inherited dependencies."""
    command = ["cargo", "metadata", "--no-deps", "--offline", "--format-version", "1"]
    ran = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, f"{root}: cargo cannot read the workspace:\n{ran.stderr}"
    found = []
    for package in json.loads(ran.stdout)["packages"]:
        dependencies = package["dependencies"]
        found.append(
            Crate(
                name=package["name"],
                folder=Path(package["manifest_path"]).parent,
                normal=frozenset(d["name"] for d in dependencies if d["kind"] != "dev"),
                dev=frozenset(d["name"] for d in dependencies if d["kind"] == "dev"),
            )
        )
    return found


def files(folder: Path, *suffixes: str) -> Iterator[Path]:
    """Walk the files below a folder that people write, in order."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in SKIPPED_FOLDERS:
                yield from files(path, *suffixes)
        elif path.suffix in suffixes:
            yield path


_RUST_TOKEN = re.compile(
    r"""
    //[^\n]*                            # line comment, doc comments included
    | /\*.*?\*/                         # block comment
    | r(?P<hashes>\#*)".*?"(?P=hashes)  # raw string
    | "(?:\\.|[^"\\])*"                 # string
    | '(?:\\[^\n]+?|[^'\\\n])'          # character
    """,
    re.DOTALL | re.VERBOSE,
)


def rust_code(text: str) -> str:
    """Give Rust text without comments and literals; lines stay where they are."""
    return _RUST_TOKEN.sub(lambda token: "\n" * token.group().count("\n"), text)


def rust_mentions(path: Path, pattern: str) -> Iterator[tuple[int, str]]:
    """Find a pattern in the code of a Rust file; gives line numbers and what matched."""
    for number, line in enumerate(rust_code(path.read_text(encoding="utf-8")).splitlines(), start=1):
        match = re.search(pattern, line)
        if match:
            yield number, match.group()


class _Imports(ast.NodeVisitor):
    """Collect imports, and calls that import by name."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.depth = 0
        self.found: list[Import] = []

    def add(self, module: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(Import(module, node.lineno, at_import_time=self.depth == 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        prefix = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            self.add(f"{prefix}.{alias.name}", node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        if name in {"__import__", "import_module", "importlib.import_module"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                relative = len(first.value) - len(first.value.lstrip("."))
                base = self.package[: len(self.package) - relative + 1] if relative else []
                self.add(".".join([*base, first.value.lstrip(".")]), node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}
        self.depth += typing_only
        for child in node.body:
            self.visit(child)
        self.depth -= typing_only
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.inside(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.inside(node)

    def inside(self, node: ast.AST) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1


def module_name(path: Path, source_root: Path) -> str:
    """Give the dotted name of a Python file below a source root."""
    parts = list(path.relative_to(source_root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, source_root: Path) -> list[Import]:
    """Read the imports of a Python file; relative ones are made absolute."""
    package = list(path.relative_to(source_root).parent.parts)
    visitor = _Imports(package)
    visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return visitor.found
