"""Terminate stops a step that waits in Rust: by spawn and by forkserver, also where the client was used at import."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("dagster")

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

JOB = Path(__file__).parent / "terminate_job.py"
DEADLINE = 120.0


def wait_for(there: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not there():
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.requirement("isolation 11.4")
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_step_that_waits_in_a_call_is_stopped(start_method: str, server: LocalServer, tmp_path: Path) -> None:
    with socket.socket() as silent:  # connects, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment = {
            **os.environ,
            "MEDKG_TEST_ANSWERING": server.address,
            "MEDKG_TEST_SILENT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "MEDKG_TEST_MARKS": str(tmp_path),
        }
        command = [sys.executable, "-W", "ignore", str(JOB), start_method]
        run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_for((tmp_path / "step").exists, run)
            silent.settimeout(DEADLINE)
            connection, _ = silent.accept()  # the call is under way
            with connection:
                step = int((tmp_path / "step").read_text())
                # What Dagster's code server sends itself when Terminate is pressed.
                pressed = time.time()
                run.send_signal(signal.SIGINT)
                assert run.wait(DEADLINE) == 0
        finally:
            run.kill()
            run.wait()
    assert (tmp_path / "also-here").read_text() == "cpu", "the client of the import answers in the step too"
    assert (tmp_path / "status").read_text() in {"CANCELED", "FAILURE"}
    assert not is_running(step)
    # The call has an hour: only the interrupt can have ended it. How soon is told, not asserted.
    print(f"{start_method}: let go after {float((tmp_path / 'let-go').read_text()) - pressed:.2f} s")
