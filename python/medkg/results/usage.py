"""What a call cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost; the parts of a split call are added up.

    Attributes:
        tokens: Tokens computed, special tokens included, padding not.
        batches: Forward passes that held a part of the call.
        queue_time: Seconds between tokenisation and the first forward pass.
        compute_time: Seconds of those forward passes, which are shared with other calls.
        device: Where it was computed, e.g. ``"cpu"`` or ``"cuda:0"``; several are separated by commas.
        calls: Requests that the call was split into.
        retries: Attempts beyond the first, over all requests.
        cache_hits: Texts whose embedding was in the cache, or was being computed for another call of this process.
    """

    tokens: int
    batches: int
    queue_time: float
    compute_time: float
    device: str
    calls: int
    retries: int
    cache_hits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a cache of embeddings did in this process, and what it holds; clients of equal settings share it.

    Attributes:
        hits: Texts found in this process.
        remote_hits: Texts found in Redis.
        misses: Texts found nowhere.
        shared: Texts that another call was computing already.
        remote_errors: Times that Redis was down or too slow.
        corrupt: Entries of Redis that were not what was written; they are computed anew.
        dropped: Entries that were not written to Redis because it was too slow for them.
        entries: Entries in this process.
        bytes: Their bytes, keys included.
    """

    hits: int
    remote_hits: int
    misses: int
    shared: int
    remote_errors: int
    corrupt: int
    dropped: int
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """What this process knows of a server's address; its clients share it.

    Attributes:
        address: As it was configured, or found.
        breaker: What its circuit breaker does: ``"closed"`` lets calls through, ``"open"`` refuses them for a while,
            ``"half_open"`` lets one through to see whether the server answers. Only failures of the network open it.
        retry_after: Seconds until the breaker lets a call through again; None if it does.
        changes: The last changes of the breaker, the newest last: how many seconds ago, and to what.
        opened: How often the breaker has opened.
        pending: Calls that are out, those included that wait because ``max_pending`` are.
        serving: What the server says of the service (``grpc.health.v1``): ``"serving"``, ``"not_serving"`` or
            ``"unknown"``. It is asked only where there is a choice between several servers.
        set_aside: True while it is left alone because it fails far more often than the others.
        slowness: How long its answers take, 1.0 being what answers to calls of that method and size take at all
            servers; None before the first, and where there is one server only.
        last_failure: What went wrong last, if anything did.
    """

    address: str
    breaker: Literal["closed", "open", "half_open"]
    retry_after: float | None
    changes: list[tuple[float, str]]
    opened: int
    pending: int
    serving: Literal["unknown", "serving", "not_serving"]
    set_aside: bool
    slowness: float | None
    last_failure: str | None


@dataclass(frozen=True, slots=True)
class RegisteredServer:
    """A server that a registry lists.

    Attributes:
        address: As clients reach it.
        services: What it serves: ``"embedding"``, ``"reranking"``, ``"vector"``, ``"gpu"``.
    """

    address: str
    services: list[str]
