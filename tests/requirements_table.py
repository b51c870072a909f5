"""Write docs/requirements.md: each task, where it lives, the tests that prove it, and whether they passed.

A task is *proven* when at least one test that carries its id passed and none failed; everything else is *open*. Tests
carry ids as `@pytest.mark.requirement("isolation 5.4")` on a function, a class or (as `pytestmark`) a module, and in
Rust as a line `// requirement: isolation 5.4` directly above the attributes of a test function. Results come from the
JUnit files of pytest and nextest. An id that is no task is an error: a marker that proves nothing must not look as if
it did.

    python tests/requirements_table.py --junit build/pytest.xml --junit build/nextest.xml
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SKIPPED_FOLDERS = frozenset({".git", ".venv", "target", "build", "dist", "__pycache__", "gen"})
RUST_TEST = re.compile(r"#\[(\w+::)?test\b")


class MarkerError(Exception):
    """A marker, a task or a result file that cannot be right."""


@dataclass(frozen=True)
class Task:
    """A task of the requirements."""

    id: str
    title: str
    home: tuple[str, ...]


@dataclass(frozen=True)
class Marker:
    """A test that claims to prove a task."""

    id: str
    path: Path
    """File, relative to the root."""
    line: int
    test: str
    """Function, with its class in Python: `TestBreaker.test_opens`."""

    @property
    def name(self) -> str:
        """Give the name that the table shows."""
        return f"{self.path.as_posix()}::{self.test.replace('.', '::')}"


@dataclass(frozen=True)
class Result:
    """A test case of a JUnit file."""

    suite: str
    name: str
    outcome: str
    """passed, failed or skipped."""


def read_tasks(path: Path) -> list[Task]:
    """Read the list of tasks; ids are unique and every task has a home."""
    tasks = [Task(t["id"], t["title"], tuple(t["home"])) for t in tomllib.loads(path.read_text("utf-8"))["task"]]
    for task_id, count in Counter(task.id for task in tasks).items():
        if count > 1:
            raise MarkerError(f"{path}: task {task_id!r} is listed {count} times; keep one")
    for task in tasks:
        if not task.home:
            raise MarkerError(f"{path}: task {task.id!r} has no home; name the path where it lives or will live")
    return tasks


def walk(folder: Path, suffix: str) -> Iterator[Path]:
    """Give the files below a folder, in order."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in SKIPPED_FOLDERS:
            yield from walk(path, suffix)
        elif path.suffix == suffix:
            yield path


def _ids(node: ast.expr, where: str) -> Iterator[str]:
    """Give the ids in a mark, or in a list of marks."""
    if isinstance(node, ast.List | ast.Tuple):
        for element in node.elts:
            yield from _ids(element, where)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.requirement"):
        for argument in node.args:
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise MarkerError(f"{where}:{node.lineno}: write the id as a plain string")
            yield argument.value


def python_markers(root: Path) -> Iterator[Marker]:
    """Read the markers of the Python tests."""
    for path in walk(root / "tests", ".py"):
        if path.name.startswith("test_"):
            relative = path.relative_to(root)
            yield from _python_markers(ast.parse(path.read_text("utf-8"), str(path)).body, relative, "", [])


def _python_markers(body: list[ast.stmt], path: Path, prefix: str, inherited: list[str]) -> Iterator[Marker]:
    """Read the markers of a module or a class; `inherited` are those of the classes and the module around it."""
    for statement in body:
        if isinstance(statement, ast.Assign) and "pytestmark" in map(ast.unparse, statement.targets):
            inherited = [*inherited, *_ids(statement.value, str(path))]
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        ids = [*inherited, *(i for decorator in node.decorator_list for i in _ids(decorator, str(path)))]
        if isinstance(node, ast.ClassDef):
            yield from _python_markers(node.body, path, f"{prefix}{node.name}.", ids)
        elif node.name.startswith("test"):
            for task_id in ids:
                yield Marker(task_id, path, node.lineno, prefix + node.name)


def rust_markers(root: Path) -> Iterator[Marker]:
    """Read the markers of the Rust tests."""
    for folder in ("rust", "gpu-server"):
        for path in walk(root / folder, ".rs"):
            relative = path.relative_to(root)
            waiting: list[tuple[str, int]] = []
            is_test = False
            for number, raw in enumerate(path.read_text("utf-8").splitlines(), start=1):
                line = raw.strip()
                marker = re.fullmatch(r"// requirement: (.+)", line)
                if marker:
                    waiting.append((marker[1].strip(), number))
                elif waiting and (function := re.match(r"(?:pub )?(?:async )?fn (\w+)", line)) and is_test:
                    for task_id, at in waiting:
                        yield Marker(task_id, relative, at, function[1])
                    waiting, is_test = [], False
                elif waiting and line.startswith(("#[", "//")):
                    is_test = is_test or bool(RUST_TEST.match(line))
                elif waiting:
                    raise MarkerError(f"{relative}:{waiting[0][1]}: the marker stands above no test function")


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Read JUnit files of pytest and nextest."""
    results = []
    for path in paths:
        try:
            document = ET.parse(path)  # noqa: S314 (written by our own test runs)
        except (OSError, ET.ParseError) as error:
            raise MarkerError(f"{path}: is no JUnit file: {error}; run the tests first") from error
        for case in document.iter("testcase"):
            outcome = "passed"
            if case.find("failure") is not None or case.find("error") is not None:
                outcome = "failed"
            elif case.find("skipped") is not None:
                outcome = "skipped"
            results.append(Result(case.get("classname", ""), case.get("name", ""), outcome))
    return results


def _is_result_of(marker: Marker, result: Result, root: Path) -> bool:
    """Tell whether a result belongs to a marked test."""
    if marker.path.suffix == ".py":
        module = ".".join(marker.path.with_suffix("").parts)
        return f"{module}.{marker.test}" == f"{result.suite}.{result.name.partition('[')[0]}"
    # nextest: the suite is `crate`, `crate::test-file` or `crate::bin/name`; the name is `module::tests::function`.
    folder = next(parent for parent in (root / marker.path).parents if (parent / "Cargo.toml").is_file())
    crate = tomllib.loads((folder / "Cargo.toml").read_text("utf-8"))["package"]["name"]
    inside = (root / marker.path).relative_to(folder).with_suffix("").parts
    if inside[0] == "tests":
        return (result.suite, result.name.split("::")[-1]) == (f"{crate}::{inside[1]}", marker.test)
    modules = [part for part in inside[1:] if part not in {"lib", "main", "mod"}]
    names = result.name.split("::")
    from_crate = result.suite == crate or result.suite.startswith(f"{crate}::bin/")
    return from_crate and names[: len(modules)] == modules and names[-1] == marker.test


def outcome_of(marker: Marker, results: list[Result], root: Path) -> str:
    """Give the outcome of a marked test: one failed case fails it, one passed case is needed to pass it."""
    outcomes = {result.outcome for result in results if _is_result_of(marker, result, root)}
    return next((o for o in ("failed", "passed", "skipped") if o in outcomes), "not run")


def table(tasks: list[Task], markers: list[Marker], results: list[Result], root: Path) -> str:
    """Write the page."""
    known = {task.id for task in tasks}
    for marker in markers:
        if marker.id not in known:
            raise MarkerError(f"{marker.path}:{marker.line}: {marker.id!r} is no task of docs/requirements.toml")
    proven: Counter[str] = Counter()
    rows = []
    for task in tasks:
        claims = {m.name: outcome_of(m, results, root) for m in markers if m.id == task.id}
        is_proven = "passed" in claims.values() and "failed" not in claims.values()
        proven[task.id.split()[0]] += is_proven
        homes = "<br>".join(f"`{home}`" if (root / home).exists() else f"`{home}` (planned)" for home in task.home)
        tests = "<br>".join(
            f"`{name}`" + ("" if outcome == "passed" else f" ({outcome})") for name, outcome in sorted(claims.items())
        )
        rows.append(f"| {task.id} | {task.title} | {homes} | {tests} | {'proven' if is_proven else 'open'} |")
    lists = Counter(task.id.split()[0] for task in tasks)
    counts = ", ".join(f"{name} {proven[name]} of {count}" for name, count in sorted(lists.items()))
    return "\n".join(
        [
            "<!-- Written by `make requirements` from docs/requirements.toml and the test results. Do not edit. -->",
            "# Requirements",
            "",
            f"**Proven: {proven.total()} of {len(tasks)} tasks** ({counts}).",
            "",
            "A task is proven when a test that carries its id passed and none that carries it failed.",
            "",
            "| Task | Title | Home | Tests | State |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    """Run from the command line: 0 when the page is written, 2 when something cannot be right."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Write docs/requirements.md from markers and test results.")
    parser.add_argument("--root", type=Path, default=root, help="root of the repository")
    parser.add_argument("--junit", type=Path, action="append", default=[], help="a JUnit file of pytest or nextest")
    parser.add_argument("--output", type=Path, help="where to write; docs/requirements.md by default")
    options = parser.parse_args(arguments)
    root = options.root
    try:
        tasks = read_tasks(root / "docs" / "requirements.toml")
        markers = [*python_markers(root), *rust_markers(root)]
        text = table(tasks, markers, read_results(options.junit), root)
    except MarkerError as error:
        sys.stderr.write(f"requirements: {error}\n")
        return 2
    output = options.output or root / "docs" / "requirements.md"
    output.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{output}: {text.splitlines()[3].replace('**', '')}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
