"""The generator of docs/requirements.md: what counts as proof, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import requirements_table as generator

ROOT = Path(__file__).resolve().parents[1]
TASKS = """
[[task]]
id = "isolation 1.1"
title = "First"
home = ["python/medkg/a.py", "python/medkg/later.py"]

[[task]]
id = "isolation 1.2"
title = "Second"
home = ["rust/x"]

[[task]]
id = "observability 1.1"
title = "Third"
home = ["docs"]
"""
PYTHON = """
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.requirement("observability 1.1")]

@pytest.mark.requirement("isolation 1.1")
@pytest.mark.parametrize("x", [1, 2])
def test_alone(x): ...

class TestGroup:
    @pytest.mark.requirement("isolation 1.2")
    async def test_member(self): ...
"""
RUST = """
mod tests {
    // requirement: isolation 1.1
    // requirement: isolation 1.2
    // a word about it
    #[tokio::test(start_paused = true)]
    async fn opens() {}

    #[test]
    fn unmarked() {}
}
"""


def tree(folder: Path, **changes: str) -> Path:
    """Make a small repository."""
    files = {
        "docs/requirements.toml": TASKS,
        "tests/unit/test_a.py": PYTHON,
        "rust/x/Cargo.toml": '[package]\nname = "medkg-x"\n',
        "rust/x/src/policy/breaker.rs": RUST,
        "python/medkg/a.py": "",
        **{name.replace("__", "/"): text for name, text in changes.items()},
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def junit(folder: Path, *cases: tuple[str, str, str]) -> str:
    """Write a JUnit file of (suite, name, inner element)."""
    text = "".join(f'<testcase classname="{s}" name="{n}">{inner}</testcase>' for s, n, inner in cases)
    path = folder / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    return str(path)


def page(root: Path, *cases: tuple[str, str, str]) -> dict[str, str]:
    """Run the generator; gives the row of each task, and the count as `count`."""
    assert generator.main(["--root", str(root), "--junit", junit(root, *cases)]) == 0
    text = (root / "docs" / "requirements.md").read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if re.match(r"\| \w+ \d", line)}
    return {"count": next(line for line in text.splitlines() if line.startswith("**Proven")), **rows}


def test_passing_tests_prove_their_tasks(tmp_path: Path) -> None:
    rows = page(
        tree(tmp_path),
        ("tests.unit.test_a", "test_alone[1]", ""),
        ("tests.unit.test_a", "test_alone[2]", ""),
        ("medkg-x", "policy::breaker::tests::opens", ""),
    )
    assert rows["count"] == "**Proven: 3 of 3 tasks** (isolation 2 of 2, observability 1 of 1)."
    first = rows["isolation 1.1"]
    assert first.endswith("| proven |")
    assert "`python/medkg/a.py`<br>`python/medkg/later.py` (planned)" in first
    assert "`rust/x/src/policy/breaker.rs::opens`<br>`tests/unit/test_a.py::test_alone`" in first
    assert "`tests/unit/test_a.py::TestGroup::test_member` (not run)" in rows["isolation 1.2"]


def test_without_results_everything_is_open(tmp_path: Path) -> None:
    rows = page(tree(tmp_path))
    assert rows.pop("count").startswith("**Proven: 0 of 3 tasks**")
    assert all(row.endswith("| open |") for row in rows.values())


@pytest.mark.parametrize("inner", ["<failure/>", "<error/>", "<skipped/>"])
def test_what_did_not_pass_proves_nothing(tmp_path: Path, inner: str) -> None:
    rows = page(tree(tmp_path), ("tests.unit.test_a.TestGroup", "test_member", inner))
    assert rows["isolation 1.2"].endswith("| open |")


def test_one_failing_case_leaves_the_task_open(tmp_path: Path) -> None:
    cases = [("tests.unit.test_a", "test_alone[1]", ""), ("tests.unit.test_a", "test_alone[2]", "<failure/>")]
    rows = page(tree(tmp_path), *cases, ("medkg-x", "policy::breaker::tests::opens", ""))
    assert rows["isolation 1.1"].endswith("| open |")
    assert "test_alone` (failed)" in rows["isolation 1.1"]
    assert rows["isolation 1.2"].endswith("| proven |")


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("medkg-y", "policy::breaker::tests::opens"),
        ("medkg-x", "policy::budget::tests::opens"),
        ("medkg-x::breaker", "opens"),
        ("tests.other.test_a", "test_alone[1]"),
        ("tests.unit.test_a", "test_alone_too"),
    ],
)
def test_a_namesake_elsewhere_proves_nothing(tmp_path: Path, suite: str, name: str) -> None:
    assert page(tree(tmp_path), (suite, name, ""))["count"].startswith("**Proven: 0 ")


def test_rust_integration_tests_and_binaries_are_found(tmp_path: Path) -> None:
    marked = "// requirement: {}\n#[test]\nfn answers() {{}}\n"
    root = tree(
        tmp_path,
        **{
            "rust__x__tests__wire.rs": marked.format("isolation 1.2"),
            "gpu-server__Cargo.toml": '[package]\nname = "gpu-server"\n',
            "gpu-server__src__main.rs": marked.format("observability 1.1"),
        },
    )
    rows = page(root, ("medkg-x::wire", "answers", ""), ("gpu-server::bin/gpu-server", "tests::answers", ""))
    assert rows["count"].startswith("**Proven: 2 of 3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tests__unit__test_a.py": PYTHON.replace("1.2", "9.9")},
            "test_a.py:11: 'isolation 9.9' is no task",
        ),
        (
            {"rust__x__src__a.rs": "// requirement: isolaton 1.1\n#[test]\nfn a() {}\n"},
            "rust/x/src/a.rs:1: 'isolaton 1.1'",
        ),
        (
            {"rust__x__src__a.rs": "// requirement: isolation 1.1\nfn a() {}\n"},
            "a.rs:1: the marker stands above no test",
        ),
        ({"rust__x__src__a.rs": "// requirement: isolation 1.1\n\n#[test]\nfn a() {}\n"}, "stands above no test"),
        ({"tests__unit__test_a.py": PYTHON.replace('"isolation 1.1"', "NAME")}, "write the id as a plain string"),
        ({"docs__requirements.toml": TASKS + TASKS}, "'isolation 1.1' is listed 2 times"),
        ({"docs__requirements.toml": TASKS.replace('["docs"]', "[]")}, "'observability 1.1' has no home"),
        ({"junit.xml": "no xml"}, "junit.xml: is no JUnit file"),
    ],
)
def test_mistakes_are_refused_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    root = tree(tmp_path, **{"junit.xml": "<testsuites/>", **changes})
    assert generator.main(["--root", str(root), "--junit", str(root / "junit.xml")]) == 2
    assert message in capsys.readouterr().err
    assert not (root / "docs" / "requirements.md").exists()


def test_the_markers_of_this_repository_are_tasks() -> None:
    tasks = generator.read_tasks(ROOT / "docs" / "requirements.toml")
    markers = [*generator.python_markers(ROOT), *generator.rust_markers(ROOT)]
    assert generator.table(tasks, markers, [], ROOT).startswith("<!--")


def test_every_task_of_the_requirements_is_listed() -> None:
    folder = ROOT.parent / "shared" / "requirements"
    if not folder.is_dir():
        pytest.skip("the requirements are not beside this repository")
    lists = {"isolation": "torch-isolation.md", "observability": "observability-and-contracts.md"}
    wanted = [
        (f"{name} {number}", title)
        for name, file in lists.items()
        for number, title in re.findall(
            r"^(?:- \[.\] |### )(\d+\.\d+) (.+)$", (folder / file).read_text("utf-8"), flags=re.MULTILINE
        )
    ]
    tasks = generator.read_tasks(ROOT / "docs" / "requirements.toml")
    assert [(task.id, task.title) for task in tasks] == wanted
