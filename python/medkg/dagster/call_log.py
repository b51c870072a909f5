"""Every call of a step: its request id in the step's log, and what all of them cost in the metadata.

A call gets its request id here, before it is sent, so that the log names it also when no answer comes: the same id is
in gpu-server's log lines and in what an error tells.
"""

from __future__ import annotations

import inspect
import os
import time
import uuid
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import dagster as dg

from medkg import Usage, errors
from medkg.dagster import metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    import medkg

ClientT = TypeVar("ClientT")
TRACE_URL_VARIABLE: Final = "MEDKG_TRACE_URL"
"""Environment variable: the address of a trace in your tracing UI, with `{trace_id}` where the id goes. For links."""


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
            "medkg/latency": metadata.histogram(self._milliseconds, title="Calls by their latency", unit="ms"),
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


def trace(trace_id: str) -> dict[str, dg.MetadataValue]:
    """The id of a trace, and a link to it where the environment says how one looks."""
    told: dict[str, dg.MetadataValue] = {"medkg/trace_id": dg.MetadataValue.text(trace_id)}
    address = os.environ.get(TRACE_URL_VARIABLE)
    if address:
        told["medkg/trace"] = dg.MetadataValue.url(address.replace("{trace_id}", trace_id))
    return told


def devices(gpu: medkg.GpuClient) -> dict[str, dg.MetadataValue]:
    """The devices of the server, their memory and temperature; nothing where it does not tell them.

    Raises:
        medkg.GpuNotAvailableError: The GPU is gone.
    """
    try:
        found = gpu.devices()
    except errors.GpuNotAvailableError:
        raise
    except errors.MedkgError:  # a server without the role `gpu`, or one that is busy: no reason to fail what is done
        return {}
    rows: list[dict[str, str | int | float | bool | None]] = [
        {
            "device": one.id,
            "name": one.name,
            "active": one.active,
            "used MiB": None if one.used_memory_bytes is None else one.used_memory_bytes >> 20,
            "total MiB": one.total_memory_bytes >> 20,
            "leased MiB": one.leased_memory_bytes >> 20,
            "°C": one.temperature_celsius,
        }
        for one in found
    ]
    used = sum(one.used_memory_bytes or 0 for one in found if one.active)
    return {
        "medkg/devices": metadata.table(rows),
        "medkg/device_memory_bytes": dg.MetadataValue.int(used),
    }


def _since(started: float) -> float:
    return time.perf_counter() - started
