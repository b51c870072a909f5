"""What collections of vectors return."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Literal, TypeAlias

    import numpy as np
    import numpy.typing as npt

    from medkg.results.embedding import SparseEmbeddingResult

    Whole: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64]
    Sparse: TypeAlias = "SparseEmbeddingResult | SparseVectors | tuple[Whole, Whole, npt.NDArray[np.float32]]"


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection of vectors.

    Attributes:
        name: Its name.
        dimension: Elements of every vector.
        metric: How nearness is measured; larger is always nearer.
        storage: Element type of the vectors on the device.
        created: True if this call made it.
        sparse_dimension: Elements of the sparse vectors that points may have; 0 if they have none.
    """

    name: str
    dimension: int
    metric: Literal["cosine", "dot", "l2"]
    storage: Literal["f32", "f16", "bf16"]
    created: bool
    sparse_dimension: int = 0


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
class SparseVectors:
    """Sparse vectors as compressed sparse rows, as ``scipy.sparse.csr_array`` has them.

    A row without terms stands for no sparse vector.

    Attributes:
        indptr: Shape ``(n + 1,)``, int32 or int64: row i lies at ``indptr[i]:indptr[i + 1]`` of the two arrays below.
        indices: Shape ``(terms,)``, int32 or int64: ascending within a row.
        values: Shape ``(terms,)``, float32: the weight of each, finite and not 0.
    """

    indptr: Whole
    indices: Whole
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFusion:
    """How a search by dense and sparse vectors is fused: reciprocal-rank fusion (Cormack et al., SIGIR 2009).

    A point's score is the sum of ``weight / (rank_constant + rank)`` over the searches that found it, ranks from 1.

    Attributes:
        candidates: Points that each of the two searches hands on, ``k`` to 10,000; at most 200,000 over the queries of
            a request. None: the larger of ``k`` and 100.
        rank_constant: 0 to 10,000; the larger it is, the less the first ranks stand out. None: 60.
        dense_weight: What a rank of the dense search counts, above 0, at most 1,000. None: 1.
        sparse_weight: What a rank of the sparse search counts, above 0, at most 1,000. None: 1.
    """

    candidates: int | None = None
    rank_constant: float | None = None
    dense_weight: float | None = None
    sparse_weight: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FetchResult:
    """The points of some ids.

    Attributes:
        ids: Those that are there, in the order asked for.
        vectors: Their vectors as they were written, one row each; None if not asked for.
        payloads: What was stored with each, None where nothing was; None altogether if not asked for.
        missing: The ids that are not there.
        sparse: Their sparse vectors, one row each; None if not asked for.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32] | None
    payloads: list[dict[str, Any] | None] | None
    missing: list[str]
    sparse: SparseVectors | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ExportBatch:
    """Points of a collection that is exported.

    Attributes:
        ids: Their ids.
        vectors: Their vectors as they were written, float32 of shape ``(len(ids), dimension)``.
        json_payloads: What was stored with each, as JSON text; None where nothing was.
        sparse: Their sparse vectors, one row each; None in a collection without a ``sparse_dimension``.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    json_payloads: list[str | None]
    sparse: SparseVectors | None = None

    @property
    def payloads(self) -> list[dict[str, Any] | None]:
        """What was stored with each point, read; None where nothing was."""
        return [None if text is None else json.loads(text) for text in self.json_payloads]


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found.

    Attributes:
        id: Its id.
        score: Larger is nearer. The inner product of a sparse search, and the fused score of a search by both.
        payload: What was stored with it, if anything was and it was asked for.
        dense_rank: In a search by both: where the dense search has it, from 1; None if that did not hand it on.
        dense_score: In a search by both: its score in the dense search.
        sparse_rank: In a search by both: where the sparse search has it, from 1; None if that did not hand it on.
        sparse_score: In a search by both: its score in the sparse search.
    """

    id: str
    score: float
    payload: dict[str, Any] | None
    dense_rank: int | None = None
    dense_score: float | None = None
    sparse_rank: int | None = None
    sparse_score: float | None = None


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
        sparse_index_bytes: The server's own memory that the indexes of their sparse vectors take.
    """

    collections: int
    damaged: list[str]
    points: int
    device_bytes: int
    disk_bytes: int
    usage: CollectionUsage
    sparse_index_bytes: int = 0


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
        sparse_dimension: Elements of the sparse vectors that points may have; 0 if they have none.
        sparse_index_bytes: The server's own memory that the index of its sparse vectors takes; 0 if there is none.
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
    sparse_dimension: int = 0
    sparse_index_bytes: int = 0
