"""Every call of a step: its request id in the step's log, and what all of them cost in the metadata.

A call gets its request id here, before it is sent, so that the log names it also when no answer comes: the same id is
in gpu-server's log lines and in what an error tells.
"""

from __future__ import annotations

import inspect
import time
import uuid
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import dagster as dg

from medkg import Usage, errors
from medkg.dagster import metadata, pictures

if TYPE_CHECKING:
    from collections.abc import Callable

ClientT = TypeVar("ClientT")


class CallLog:
    """The calls of one step."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """Begins.

        Args:
            log: Told of each call when it ends.
        """
        self._log = log
        self._used: list[Usage] = []
        self._milliseconds: list[int] = []
        self._texts = 0

    def watch(self, service: str, client: ClientT) -> ClientT:
        """The client, with each of its calls in this log.

        Args:
            service: What it is called in the log.
            client: One of medkg's clients.
        """
        return cast("ClientT", _Watched(self, service, client))

    def metadata(self) -> dict[str, dg.MetadataValue]:
        """What the calls so far cost: `metadata.usage`, the texts, and a picture of how long each took."""
        if not self._milliseconds:
            return metadata.usage(self._used)
        return {
            **metadata.usage(self._used),
            "medkg/texts": dg.MetadataValue.int(self._texts),
            "medkg/latency": pictures.histogram(self._milliseconds, title="Calls by their latency", unit="ms"),
        }

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Makes a call, under a request id of its own unless it is given one."""
        request_id = options.get("request_id") or uuid.uuid4().hex
        started = time.perf_counter()
        try:
            result = function(*arguments, **{**options, "request_id": request_id})
        except errors.MedkgError as error:
            self._log(f"{name}: request {request_id} failed after {_since(started):.3f} s: {type(error).__name__}")
            raise
        seconds = _since(started)
        self._milliseconds.append(round(1000 * seconds))
        usage = getattr(result, "usage", None)
        if isinstance(usage, Usage):  # a collection's statistics have a usage of their own
            self._used.append(usage)
        counts = getattr(result, "token_counts", None)
        self._texts += 0 if counts is None else len(counts)
        self._log(f"{name}: request {request_id}, {seconds:.3f} s")
        return result


class _Watched:
    """A client whose calls, which are the methods that take `**call`, go through a log."""

    def __init__(self, log: CallLog, service: str, client: object) -> None:
        self._log, self._service, self._client = log, service, client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not inspect.ismethod(found) or "call" not in inspect.signature(found).parameters:
            return found

        @wraps(found)
        def call(*arguments: Any, **options: Any) -> Any:
            return self._log.call(f"{self._service}.{name}", found, *arguments, **options)

        return call

    def __repr__(self) -> str:
        return repr(self._client)


def _since(started: float) -> float:
    return time.perf_counter() - started
