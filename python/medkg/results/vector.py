"""What collections of vectors return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
