"""Commands run as a reader runs them, in process groups of their own, and nothing of them left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.terminal import IN_A_TERMINAL

from .readme import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 240.0
"""Seconds that anything may take on a busy machine before the test gives up."""


class Command:
    """A running shell command; it and its children are one process group, as in a terminal."""

    def __init__(self, text: str, folder: Path, output: Path, environment: dict[str, str]) -> None:
        # What an outer `make` says to its children is not for this one.
        outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "DAGSTER_HOME")
        inherited = {key: value for key, value in os.environ.items() if key not in outer}
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [*IN_A_TERMINAL, "bash", "-euc", text],
                cwd=folder,
                env={**inherited, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Standard output and standard error so far."""
        return self._output.read_text("utf-8", errors="replace")

    def wait_for(self, text: str) -> str:
        """Wait until it has said something, and give all that it said."""
        until(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, f"it ended with {self.process.returncode} before it said {text!r}:\n{self.said}"
        return self.said

    def result(self) -> int:
        """Wait for the end."""
        return self.process.wait(PATIENCE)

    def interrupt(self) -> int:
        """Press Ctrl-C, which every process of the group gets, and wait for the end."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.result()

    def end(self) -> None:
        """Leave nothing behind when a test has failed."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition; give up when nothing can be expected any more."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that have a folder in their command line or environment, as everything that a demo starts has."""
    mark = os.fsencode(folder)
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            line = (process / "cmdline").read_bytes()
            if mark in line or mark in (process / "environ").read_bytes():
                found[int(process.name)] = line.replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended, or is not ours
            continue
    return found


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts a shell command in the repository, or in another folder."""
    started: list[Command] = []

    def run(text: str, folder: Path = ROOT, **environment: str) -> Command:
        output = tmp_path_factory.mktemp("command") / "output.txt"
        started.append(Command(text, folder, output, environment))
        return started[-1]

    yield run
    for command in started:
        command.end()
