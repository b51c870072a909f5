"""A gpu-server of one's own, for development, demos and tests: started on a free port, waited for, stopped.

It is the real binary, not a stand-in. Production starts gpu-server as a service instead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

ROLES = ("gpu", "embedding", "reranking", "vector")
_POLL_SECONDS = 0.02


class LocalServerError(RuntimeError):
    """The server did not start, or did not become ready; the message ends with the last lines of its log."""


class LocalServer:
    """One gpu-server process.

    Args:
        binary: The gpu-server executable.
        services: Roles to serve.
        embedding_models: Name to checkpoint folder; the first one is the default.
        reranking_models: Name to checkpoint folder; the first one is the default.
        data_dir: Folder of the vector collections; needed for the role ``vector``.
        device: ``cpu``, ``cuda`` or ``cuda:N``. There is no fallback from one to another.
        threads: Threads of one operation on the CPU; None means one per core.
        port: Port on 127.0.0.1; 0 takes a free one.
        log_path: File that gets the server's JSON log lines; None makes a temporary one.
        arguments: Further command-line arguments.
        env: Further environment variables.
        wait: Wait until every model has loaded or failed before `start` returns.
        start_timeout: Seconds that starting may take.
    """

    def __init__(
        self,
        binary: str | os.PathLike[str],
        *,
        services: Sequence[str] = ROLES,
        embedding_models: Mapping[str, str | os.PathLike[str]] | None = None,
        reranking_models: Mapping[str, str | os.PathLike[str]] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        threads: int | None = None,
        port: int = 0,
        log_path: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        start_timeout: float = 120.0,
    ) -> None:
        """Starts nothing yet: see `start`."""
        self._command = [os.fspath(binary), "--services", ",".join(services), "--device", device]
        for flag, models in (("--embedding-model", embedding_models), ("--reranking-model", reranking_models)):
            for name, directory in (models or {}).items():
                self._command += [flag, f"{name}={os.fspath(directory)}"]
        if data_dir is not None:
            self._command += ["--data-dir", os.fspath(data_dir)]
        if threads is not None:
            self._command += ["--threads", str(threads)]
        self._command += arguments
        self._port = port
        # A role that is not served loads no models.
        served = (("embedding", embedding_models), ("reranking", reranking_models))
        self._models = sum(len(models or {}) for role, models in served if role in services)
        self._vector = "vector" in services
        self._env = dict(env or {})
        self._wait = wait
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        if log_path is None:
            handle, name = tempfile.mkstemp(prefix="gpu-server-", suffix=".log")
            os.close(handle)
            log_path = name
        self.log_path = Path(log_path)
        """Where the server's JSON log lines are."""

    @property
    def address(self) -> str:
        """The server's address, ``http://127.0.0.1:PORT``; it stays the same over a restart."""
        if self._port == 0:
            msg = "gpu-server has not been started: call start() first"
            raise LocalServerError(msg)
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            LocalServerError: It is not running.
        """
        if self._process is None:
            msg = "gpu-server is not running: call start() first"
            raise LocalServerError(msg)
        return self._process.pid

    def start(self) -> Self:
        """Starts the process and waits until it listens and, if asked for, until every model loaded or failed.

        Raises:
            LocalServerError: It exited, or took too long.
        """
        offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        command = [*self._command, "--listen", f"127.0.0.1:{self._port}", "--log-format", "json"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MEDKG_")}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environment, **self._env}
            )
        try:
            self._wait_until_ready(self._process, offset)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout: float = 60.0) -> int | None:
        """Sends SIGTERM, waits for the drain, and returns the exit status; None if nothing ran."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self) -> None:
        """Ends the process at once, as a crash would."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()

    def events(self) -> list[dict[str, object]]:
        """The server's log lines so far, parsed; lines that are no JSON are left out."""
        return _parse(self.log_path.read_bytes())

    def __enter__(self) -> Self:
        """Starts the server."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        self.stop()

    def _wait_until_ready(self, process: subprocess.Popen[bytes], offset: int) -> None:
        deadline = time.monotonic() + self._start_timeout
        while not self._ready(offset):
            if (code := process.poll()) is not None:
                raise LocalServerError(f"gpu-server exited with {code} while starting:\n{self._tail(offset)}")
            if time.monotonic() > deadline:
                raise LocalServerError(f"gpu-server was not ready in {self._start_timeout} s:\n{self._tail(offset)}")
            time.sleep(_POLL_SECONDS)

    def _ready(self, offset: int) -> bool:
        lines = _parse(self.log_path.read_bytes()[offset:])
        listening = next((line for line in lines if str(line.get("message", "")).startswith("listening on ")), None)
        if listening is None:
            return False
        self._port = int(str(listening["address"]).rpartition(":")[2])
        messages = [line.get("message") for line in lines]
        refused = any("every call is refused" in str(message) for message in messages)
        if refused or not self._wait:
            return True
        models_settled = sum(message in {"model ready", "model not served"} for message in messages) >= self._models
        vectors = ("vector collections ready", "the vector role is not served")
        return models_settled and (not self._vector or any(message in vectors for message in messages))

    def _tail(self, offset: int) -> str:
        return "\n".join(self.log_path.read_bytes()[offset:].decode(errors="replace").splitlines()[-15:])


def _parse(log: bytes) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = []
    for line in log.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines
