"""The generator of docs/reliability.md: rows come from tests alone, through pytest's own results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from . import reliability_table as generator

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import pytest

@pytest.mark.fault("TLS", "no certificate", "refused | at once")
def test_refused(seen):
    seen("an alert")
    seen("<nothing> served")

@pytest.mark.fault("Redis", "stopped", "no call fails")
def test_fails(seen):
    raise AssertionError

@pytest.mark.fault("Redis", "slow", "no call fails")
def test_skipped(seen):
    pytest.skip("redis-server is not installed")

def test_without_a_fault():
    pass
"""
SILENT = """
import pytest

@pytest.mark.fault("TLS", "no certificate", "refused")
def test_refused():
    pass
"""
TWICE = """
import pytest

@pytest.mark.fault("TLS", "no certificate", "refused")
@pytest.mark.parametrize("x", [1, 2])
def test_refused(x, seen):
    seen("an alert")
"""


def results(folder: Path, tests: str) -> Path:
    """Run tests with this suite's conftest, on two workers as `make test` does."""
    (folder / "test_faults.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = fault(area, fault, expected)\n")
    junit = folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-n", "2", "-c", folder / "pytest.ini"]
    subprocess.run([*command, f"--junitxml={junit}", folder], cwd=ROOT, check=False, capture_output=True, timeout=120)
    return junit


def test_a_row_has_what_was_expected_and_what_was_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert generator.main([f"--junit={results(tmp_path, TESTS)}", f"--output={page}"]) == 0
    lines = page.read_text().splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## Redis", "## TLS"]
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| Fault")]
    assert rows == [
        "| slow | no call fails | redis-server is not installed | not run | `test_faults.py::test_skipped` |",
        "| stopped | no call fails | the test failed | **NO** | `test_faults.py::test_fails` |",
        r"| no certificate | refused \| at once | an alert; <nothing> served | yes | `test_faults.py::test_refused` |",
    ]


@pytest.mark.parametrize(
    ("tests", "problem"), [(SILENT, "does not tell what it saw"), (TWICE, "make the same fault"), ("", "no test")]
)
def test_a_row_that_says_nothing_new_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tests: str, problem: str
) -> None:
    page = tmp_path / "page.md"
    assert generator.main([f"--junit={results(tmp_path, tests)}", f"--output={page}"]) == 2
    assert problem in capsys.readouterr().err
    assert not page.exists()


def test_a_missing_result_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generator.main([f"--junit={tmp_path / 'none.xml'}", f"--output={tmp_path / 'page.md'}"]) == 2
    assert "run the tests first" in capsys.readouterr().err
