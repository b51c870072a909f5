"""The demo where things go wrong; tests/readme has it where they go well."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = Path(__file__).parents[2] / "examples"
DEADLINE = 240.0


@pytest.fixture
def command(
    gpu_server_binary: Path, minilm_dir: Path, reranker_dir: Path, documents: Path, tmp_path: Path
) -> list[str]:
    """The demo over the test's documents, with folders of the test's own."""
    return [
        *(sys.executable, "-W", "ignore", str(EXAMPLES / "demo.py"), "--server-binary", str(gpu_server_binary)),
        *("--embedding-model", f"all-MiniLM-L6-v2={minilm_dir}", "--reranking-model", f"reranker={reranker_dir}"),
        *("--docs", str(documents), "--threads", "1"),
        *("--home", str(tmp_path / "home"), "--data-dir", str(tmp_path / "data")),
    ]


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that name the folder."""
    entries = Path("/proc").glob("[0-9]*/cmdline")
    return [line for line in map(command_line, entries) if str(folder) in line]


def command_line(entry: Path) -> str:
    """What the process was started with; nothing if it has gone meanwhile."""
    try:
        return entry.read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_run_that_fails_says_why_and_exits_with_1(command: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty.md").write_text("", encoding="utf-8")
    at = command.index("--docs")
    done = subprocess.run(
        [*command[:at], "--docs", str(bad), *command[at + 2 :]],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The run failed" in done.stdout
    assert "not one document" in done.stdout
    assert "the file is empty" in " ".join(done.stdout.split())  # the screen wraps where the path's length says
    wait_until(lambda: not processes_of(tmp_path), "something was left running")


@pytest.mark.parametrize(
    "sign", [pytest.param("Dagster ", id="server"), pytest.param("[1/5]", id="steps", marks=pytest.mark.slow)]
)
def test_sigterm_stops_everything_it_started(command: list[str], tmp_path: Path, sign: str) -> None:
    log = tmp_path / "output"
    with log.open("wb") as output:
        demo = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        started = sign.encode()
        wait_until(lambda: started in log.read_bytes() or demo.poll() is not None, f"{sign!r} was not shown")
        assert demo.poll() is None, log.read_text(encoding="utf-8")
        demo.terminate()
        assert demo.wait(DEADLINE) == 143, log.read_text(encoding="utf-8")
    finally:
        demo.kill()
        demo.wait()
    wait_until(lambda: not processes_of(tmp_path), "something was left running")
