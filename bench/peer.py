"""A peer in an interpreter of its own, driven over its standard input (see bench/peers/answering.py)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import CandidateError

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

SCRIPTS = Path(__file__).parent / "peers"
PATIENCE = 900.0
"""Seconds that one answer may take before the peer counts as hung."""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "PYTHONWARNINGS": "ignore",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}


class Peer:
    """One script of bench/peers, running.

    It is a session of its own, so that Ctrl-C reaches the bench alone, which then ends it; if the bench is killed, the
    peer ends with its input.
    """

    def __init__(self, script: str, interpreter: str, log: Path, **arguments: Any) -> None:
        """Starts it and waits until it is loaded.

        Args:
            script: Name of a file in bench/peers, without suffix.
            interpreter: The Python that runs it.
            log: File that gets what it prints.
            arguments: For its `load`.

        Raises:
            CandidateError: Its interpreter is not there, or it could not load; the message ends with its last words.
        """
        self.name = script
        self.log = log
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [interpreter, str(SCRIPTS / f"{script}.py"), json.dumps(arguments)]
        try:
            with log.open("wb") as file:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    env={**environment, **QUIET},
                    start_new_session=True,
                )
        except OSError as error:
            raise CandidateError(f"{interpreter} does not run ({error}): run `make bench`, which sets it up") from None
        try:
            self.versions: dict[str, str] = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer of one of its actions.

        Raises:
            CandidateError: The action failed, or the peer has ended.
        """
        assert self.process.stdin is not None  # noqa: S101
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise CandidateError(f"{self.name} has ended ({error}){self._last_words()}") from None
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it no longer reads
                    pipe.close()

    def __enter__(self) -> Self:
        """It runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None  # noqa: S101
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise CandidateError(f"{self.name} ended without an answer{self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise CandidateError(f"{self.name}: {answer['error']}")
        return answer["value"]

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
