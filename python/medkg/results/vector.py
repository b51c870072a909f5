"""What collections of vectors return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Literal

    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection of vectors.

    Attributes:
        name: Its name.
        dimension: Elements of every vector.
        metric: How nearness is measured; larger is always nearer.
        storage: Element type of the vectors on the device.
        created: True if this call made it.
    """

    name: str
    dimension: int
    metric: Literal["cosine", "dot", "l2"]
    storage: Literal["f32", "f16", "bf16"]
    created: bool


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What a write did.

    Attributes:
        inserted: Ids that were new.
        replaced: Ids that were replaced.
    """

    inserted: int
    replaced: int


@dataclass(frozen=True, slots=True, eq=False)
class FetchResult:
    """The points of some ids.

    Attributes:
        ids: Those that are there, in the order asked for.
        vectors: Their vectors as they were written, one row each; None if not asked for.
        payloads: What was stored with each, None where nothing was; None altogether if not asked for.
        missing: The ids that are not there.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32] | None
    payloads: list[dict[str, Any] | None] | None
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found.

    Attributes:
        id: Its id.
        score: Larger is nearer.
        payload: What was stored with it, if anything was and it was asked for.
    """

    id: str
    score: float
    payload: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Latency:
    """How long calls took on the server, within 1 %; seconds.

    Attributes:
        p50: Half of the calls took at most this long.
        p90: Nine in ten.
        p99: 99 in 100.
        max: The longest one; at most an hour is told.
    """

    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class CollectionUsage:
    """What was done to collections since the server started; only what succeeded.

    Attributes:
        searches: Calls that searched, as the server got them.
        queries: Queries in them.
        upserts: Requests that wrote points.
        upserted_points: Points in them.
        deletes: Requests that removed points.
        deleted_points: Points that they removed.
        last_write: The end of the last write, aware, in UTC; None if there was none.
        search_latency: How long searches took on the server, waiting included; None if there was none.
    """

    searches: int
    queries: int
    upserts: int
    upserted_points: int
    deletes: int
    deleted_points: int
    last_write: datetime | None
    search_latency: Latency | None


@dataclass(frozen=True, slots=True)
class TenantStatistics:
    """Sums over a tenant's collections that are there now.

    Attributes:
        collections: Collections that are served.
        damaged: Names of those that cannot be read, which are not in the sums.
        points: Points in them.
        device_bytes: Device memory that their vectors take, spare capacity included.
        disk_bytes: Bytes of their files.
        usage: What was done to them.
    """

    collections: int
    damaged: list[str]
    points: int
    device_bytes: int
    disk_bytes: int
    usage: CollectionUsage


@dataclass(frozen=True, slots=True)
class RecallReport:
    """How search compares with the exact nearest points in float64.

    Attributes:
        recall: found / expected.
        expected: Points that should have been found.
        found: Those of them that search returned.
        queries: Stored points that were taken as queries.
        mismatches: Queries for which a point was missing, or the order was wrong.
        mismatched_ids: The ids of the first 20 of those.
        points: Points that each query was compared with.
    """

    recall: float
    expected: int
    found: int
    queries: int
    mismatches: int
    mismatched_ids: list[str]
    points: int


@dataclass(frozen=True, slots=True)
class CollectionStatistics:
    """Size, memory and use of a collection.

    Attributes:
        name: Its name.
        dimension: Elements of every vector.
        metric: How nearness is measured.
        storage: Element type of the vectors on the device.
        points: Points in it.
        device_bytes: Device memory that its vectors take, spare capacity included.
        disk_bytes: Bytes of its file.
        queries: Queries answered since the server started.
        device: Where it is searched.
        usage: What was done to it.
    """

    name: str
    dimension: int
    metric: Literal["cosine", "dot", "l2"]
    storage: Literal["f32", "f16", "bf16"]
    points: int
    device_bytes: int
    disk_bytes: int
    queries: int
    device: str
    usage: CollectionUsage
