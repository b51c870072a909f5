"""What the client's tests share: peers without a model, and scripts in processes of their own with a time limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent import futures
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest

from tests.terminal import IN_A_TERMINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Finished(NamedTuple):
    """A process that has ended."""

    status: int
    out: str
    err: str


class Script:
    """A script in a process of its own; it and everything it started is ended at the end of the test."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*IN_A_TERMINAL, sys.executable, "-c", textwrap.dedent(code), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self, limit: float = 60.0) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(limit, self.end)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, f"it ended without a line: {self.finish()}"
        return line.strip()

    def finish(self, limit: float = 60.0) -> Finished:
        """Waits until it has ended; a script that hangs fails the test."""
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.end()
            out, err = self.process.communicate()
            pytest.fail(f"the script hung for {limit} s:\n{out}\n{err}")
        return Finished(self.process.returncode, out, err)

    def end(self) -> None:
        """Ends it and the children that it forked."""
        # Children that it forked may hold its pipes when it is gone itself.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts a script: `script(code, *arguments)`."""
    started: list[Script] = []

    def start(code: str, *arguments: str) -> Script:
        started.append(Script(code, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()
        one.process.communicate()


@pytest.fixture
def refusing() -> str:
    """An address at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Peer(grpc.GenericRpcHandler):
    """A gRPC server that answers every method with one message or status, an empty message at first, and remembers
    metadata."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []
        self.answer = b""
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Answers one call."""
        self.metadata.append({key: value for key, value in details.invocation_metadata if isinstance(value, str)})

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self.failure is not None:
                context.abort(*self.failure)
            return self.answer

        return grpc.unary_unary_rpc_method_handler(answer)

    def stop(self) -> None:
        """Ends it."""
        self._server.stop(None).wait()


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A gRPC server without a model."""
    started = Peer()
    yield started
    started.stop()


def until(condition: Callable[[], bool], limit: float = 30.0) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Waits for a condition, with a limit: `wait_until(condition)`."""
    return until
