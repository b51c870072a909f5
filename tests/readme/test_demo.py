"""`make demo` and `make dev`, run as the README says: what they show, a second run, and Ctrl-C.

Dagster's home and the vectors are in a folder of the test (DEMO_ARGS), so that nobody's own demo is touched.
"""

from __future__ import annotations

import re
import socket
import subprocess
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from .conftest import processes_of, until
from .readme import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Command

QUESTIONS = ("dapagliflozin", "septic shock", "mechanical heart valve")
STAGES = ("documents", "chunks", "embeddings", "vector_index", "reranked_answers")
ONE_DOCUMENT = "make demo DOCS=examples/documents/sepsis-first-hours.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dagster's home and the vectors of all runs in this file."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def arguments(folder: Path) -> str:
    """What keeps a run in that folder."""
    return f"--home {folder / 'home'} --data-dir {folder / 'data'}"


def section(said: str, heading: str) -> str:
    """What stands under a heading."""
    return re.split(r"\n\n(?=\S)", said.partition(f"\n{heading}")[2])[0]


def test_make_demo_shows_what_a_person_wants_to_see(
    start: Callable[..., Command], folder: Path, arguments: str
) -> None:
    demo = start("make demo", DEMO_ARGS=arguments)
    assert demo.result() == 0, demo.said
    said = demo.said
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/5] {stage} ..." in said, "progress shows while it works"
    made = section(said, "What was made")
    samples = len(list((ROOT / "examples" / "documents").iterdir()))
    assert re.search(rf"documents +{samples} documents \(", made)
    (chunks,) = re.findall(r"chunks +(\d+) chunks, longest \d+ of 256 tokens\n", made)
    assert int(chunks) > samples
    assert re.search(rf"embeddings +{chunks} vectors of 384 by all-MiniLM-L6-v2 on cpu\n", made)
    assert re.search(rf"vector_index +{chunks} points in '\w+' \({chunks} new, 0 replaced\)\n", made)
    for number, question in enumerate(QUESTIONS, start=1):
        found = section(said, f"Question {number}: ")
        assert question in found
        # Document and file, section, text of the passage.
        assert re.search(r"\n  1\. \S.+  \([\w-]+\.\w+(, page \d+)?\)\n     \S.+\n     score .+\n     \| ", found)
    assert ", page " in said
    took = section(said, "How long it took")
    for stage in (*STAGES, "everything"):
        assert re.search(rf"^  {stage} .*\d+\.\d\d s", took, re.MULTILINE), took
    until(lambda: processes_of(folder) == {})  # Dagster's fork server ends a moment after the process it served


def test_a_second_run_finds_everything_there(start: Callable[..., Command], folder: Path, arguments: str) -> None:
    """The reader's own document, twice: a tenant of its own, and no point is stored twice."""
    first = start(ONE_DOCUMENT, DEMO_ARGS=arguments)
    assert first.result() == 0, first.said
    (points,) = re.findall(r"vector_index +(\d+) points in '\w+' \(\1 new, 0 replaced\)\n", section(first.said, "What"))
    assert "1 documents" in section(first.said, "What was made")
    again = start(ONE_DOCUMENT, DEMO_ARGS=arguments)
    assert again.result() == 0, again.said
    assert f"{points} points in 'literature' (0 new, {points} replaced)\n" in section(again.said, "What was made")
    for number in (1, 2, 3):
        assert set(re.findall(r"\((\S+?),? ", section(again.said, f"Question {number}"))) <= {
            "sepsis-first-hours.json",
            "reranker",
        }
    until(lambda: processes_of(folder) == {})  # Dagster's fork server ends a moment after the process it served


def last_command(make: str, arguments: str) -> str:
    """The last line of a target's recipe; what comes before it is set-up."""
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", make, f"DEMO_ARGS={arguments}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    line = done.stdout.splitlines()[-1]
    assert " && .venv/bin/python examples/demo.py " in line
    return line.replace(" && .venv", " && exec .venv")


@pytest.mark.parametrize("moment", ["  tenant ", "[1/5] documents ..."])
def test_ctrl_c_stops_everything(start: Callable[..., Command], folder: Path, arguments: str, moment: str) -> None:
    demo = start(last_command("demo", arguments))
    demo.wait_for(moment)
    assert any("gpu-server" in line for line in processes_of(folder).values())
    assert demo.interrupt() == 130, demo.said
    assert demo.said.rstrip().endswith("stopped")
    assert "Traceback" not in demo.said
    until(lambda: processes_of(folder) == {})


def test_ctrl_c_reaches_the_demo_through_make(start: Callable[..., Command], folder: Path, arguments: str) -> None:
    demo = start("exec make demo", DEMO_ARGS=arguments)
    demo.wait_for("  gpu-server ")
    assert demo.interrupt() != 0
    until(lambda: processes_of(folder) == {})


def test_make_dev_opens_the_project_in_dagsters_web_ui(
    start: Callable[..., Command], folder: Path, arguments: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ui = start(last_command("dev", f"{arguments} --port {port}"))
    ui.wait_for(f"http://127.0.0.1:{port}")

    def assets() -> bool:
        assert ui.process.poll() is None, ui.said
        query = "%7BassetNodes%7BassetKey%7Bpath%7D%7D%7D"
        try:
            with urlopen(f"http://127.0.0.1:{port}/graphql?query={query}", timeout=30) as answer:
                told = answer.read().decode()
        except OSError:
            return False
        return all(f'"{stage}"' in told for stage in STAGES)

    until(assets)
    assert ui.interrupt() == 130, ui.said
    until(lambda: processes_of(folder) == {})
