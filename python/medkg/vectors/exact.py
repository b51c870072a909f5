"""What the homes without a gpu-server share: checks, filters and ranking around a place that only stores rows.

A search without a filter asks the home's own flat search for candidates, a few more than k, and for more until the
last one is so far behind the k-th that rounding cannot have mixed them up; then the candidates are scored again in
float64. A search with a filter, and a count with one, reads the collection once and decides in Python (see
`matching`).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medkg.results import CollectionInfo, FetchResult, Hit, RankFusion, UpsertResult
from medkg.vectors import checks
from medkg.vectors.interface import VectorStore
from medkg.vectors.matching import Matcher
from medkg.vectors.ranking import Nearest, scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from medkg.filters import Filter
    from medkg.results.vector import Sparse
    from medkg.vectors.interface import Collections, Found, Metric

__all__ = ["ExactStore", "Rows"]

SPARE: Final = 16
"""Candidates beyond k in a first attempt."""
MOST: Final = 16_384
"""Most candidates; beyond them the collection is read instead. It is the limit of Milvus."""
AT_ONCE: Final = 1_000
"""Ids in one question to a home."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Points as a home stores them.

    Attributes:
        ids: Their ids.
        vectors: Shape ``(n, dimension)``; no columns if they were not asked for.
        payloads: JSON text each, "" for none, also if they were not asked for.
        nearness: What the home's search says, larger is nearer: the cosine, the dot product, or minus the square of the
            distance; empty where nothing was searched.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    payloads: list[str]
    nearness: npt.NDArray[np.float32]


class ExactStore(VectorStore):
    """A home that stores rows."""

    __slots__ = ()

    def __init__(self, tenant: str) -> None:
        """Belong to a tenant, whose name becomes part of a path."""
        super().__init__(checks.tenant(tenant))

    @abstractmethod
    def _describe(self, name: str) -> CollectionInfo | None:
        """The collection, if it is there."""

    @abstractmethod
    def _names(self) -> list[str]:
        """Names of the tenant's collections."""

    @abstractmethod
    def _make(self, info: CollectionInfo) -> None:
        """Make a collection that is not there."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove a collection."""

    @abstractmethod
    def _count(self, name: str) -> int:
        """How many points there are."""

    @abstractmethod
    def _write(self, info: CollectionInfo, rows: Rows) -> None:
        """Add or replace points."""

    @abstractmethod
    def _erase(self, name: str, ids: Sequence[str]) -> None:
        """Remove points that are there, at most `AT_ONCE`."""

    @abstractmethod
    def _read(self, info: CollectionInfo, ids: Sequence[str], *, vectors: bool, payloads: bool) -> Rows:
        """Those of at most `AT_ONCE` ids that are there, in any order."""

    @abstractmethod
    def _scan(self, info: CollectionInfo, *, vectors: bool, payloads: bool) -> Iterator[Rows]:
        """All points, in any order."""

    @abstractmethod
    def _candidates(self, info: CollectionInfo, query: npt.NDArray[np.float32], limit: int, *, payloads: bool) -> Rows:
        """The nearest points by the home's own flat search, best first, with vectors and nearness."""

    def create(
        self,
        name: str,
        dimension: int,
        metric: Metric = "cosine",
        *,
        sparse_dimension: int = 0,
        exist_ok: bool = False,
    ) -> CollectionInfo:
        """See :meth:`VectorStore.create`."""
        self._no_sparse("sparse_dimension", sparse_dimension != 0)
        checks.collection(name, dimension, metric)
        found = self._describe(name)
        if found is not None:
            if not exist_ok or (found.dimension, found.metric) != (dimension, metric):
                raise checks.already_there(found, self._tenant)
            return found
        made = CollectionInfo(name, dimension, metric, "f32", created=True)
        self._make(made)
        return made

    def drop(self, name: str) -> int:
        """See :meth:`VectorStore.drop`."""
        self._open(name)
        points = self._count(name)
        self._remove(name)
        return points

    def list(self) -> Collections:
        """See :meth:`VectorStore.list`."""
        found = (self._describe(name) for name in sorted(self._names()))
        return [info for info in found if info is not None]

    def upsert(
        self,
        name: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        payloads: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        sparse: Sparse | None = None,
    ) -> UpsertResult:
        """See :meth:`VectorStore.upsert`."""
        self._no_sparse("sparse", sparse is not None)
        info = self._open(name)
        wanted = checks.new_ids(ids)
        rows = checks.matrix("vectors", vectors, info, one=False)
        if len(rows) != len(wanted):
            raise checks.invalid("vectors", f"has {len(rows)} rows for {len(wanted)} ids; give one per id")
        written = checks.payload_texts(payloads, len(wanted))
        replaced = len(self._present(info, wanted))
        self._write(info, Rows(wanted, rows, written, np.empty(0, np.float32)))
        return UpsertResult(inserted=len(wanted) - replaced, replaced=replaced)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """See :meth:`VectorStore.delete`."""
        info = self._open(name)
        there = sorted(self._present(info, checks.texts(ids)))
        for start in range(0, len(there), AT_ONCE):
            self._erase(name, there[start : start + AT_ONCE])
        return len(there)

    def fetch(
        self,
        name: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        with_payload: bool = True,
        with_sparse: bool = False,
    ) -> FetchResult:
        """See :meth:`VectorStore.fetch`."""
        self._no_sparse("with_sparse", with_sparse)
        info = self._open(name)
        wanted = checks.texts(ids)
        there: dict[str, tuple[npt.NDArray[np.float32], str]] = {}
        for part in _parts(wanted):
            rows = self._read(info, part, vectors=with_vectors, payloads=with_payload)
            there.update(zip(rows.ids, zip(rows.vectors, rows.payloads, strict=True), strict=True))
        found = [one for one in wanted if one in there]
        vectors = np.empty((len(found), info.dimension), np.float32) if with_vectors else None
        if vectors is not None:
            for row, one in enumerate(found):
                vectors[row] = there[one][0]
        payloads = [_payload(there[one][1]) for one in found] if with_payload else None
        return FetchResult(found, vectors, payloads, [one for one in wanted if one not in there])

    def count(self, name: str, filter: Filter | None = None) -> int:  # noqa: A002 - as in the interface
        """See :meth:`VectorStore.count`."""
        info = self._open(name)
        if filter is None:
            return self._count(name)
        matcher = Matcher(filter)
        batches = self._scan(info, vectors=False, payloads=True)
        matching = sum(matcher.matches(_payload(text)) for rows in batches for text in rows.payloads)
        matcher.finish()
        return matching

    def search(
        self,
        name: str,
        queries: npt.NDArray[np.float32] | None = None,
        k: int = 10,
        *,
        sparse: Sparse | None = None,
        fusion: RankFusion | None = None,
        filter: Filter | None = None,  # noqa: A002 - as in the interface
        with_payload: bool = True,
        score_threshold: float | None = None,
    ) -> Found:
        """See :meth:`VectorStore.search`."""
        self._no_sparse("sparse", sparse is not None)
        self._no_sparse("fusion", fusion is not None)
        if queries is None:
            raise checks.invalid("queries", "is missing; give dense vectors")
        info = self._open(name)
        asked = checks.matrix("queries", queries, info, one=True)
        checks.search(len(asked), k, score_threshold, info.metric)
        nearest = [Nearest(k, score_threshold) for _ in asked]
        pending = list(range(len(asked)))
        if filter is None:
            pending = [i for i in pending if not self._by_candidates(info, asked[i], k, nearest[i])]
        if pending:
            self._by_reading(info, asked, filter, [(i, nearest[i]) for i in pending])
        return [
            [Hit(point, score, _payload(text) if with_payload else None) for score, point, text in one.best()]
            for one in nearest
        ]

    def _by_candidates(self, info: CollectionInfo, query: npt.NDArray[np.float32], k: int, nearest: Nearest) -> bool:
        """Search among candidates; False if there would be too many."""
        limit = k + SPARE
        while limit <= MOST:
            rows = self._candidates(info, query, limit, payloads=True)
            if len(rows.ids) < limit or _settled(info, query, rows, k):
                if rows.ids:
                    nearest.add(rows.ids, scores(query, rows.vectors, info.metric), rows.payloads)
                return True
            limit *= 4
        return False

    def _by_reading(
        self,
        info: CollectionInfo,
        queries: npt.NDArray[np.float32],
        wanted: Filter | None,
        nearest: Sequence[tuple[int, Nearest]],
    ) -> None:
        """Search by reading the whole collection once."""
        matcher = None if wanted is None else Matcher(wanted)
        for rows in self._scan(info, vectors=True, payloads=True):
            ids, vectors, payloads = rows.ids, rows.vectors, rows.payloads
            if matcher is not None:
                keep = [i for i, text in enumerate(payloads) if matcher.matches(_payload(text))]
                ids, vectors, payloads = [ids[i] for i in keep], vectors[keep], [payloads[i] for i in keep]
            if ids:
                for i, one in nearest:
                    one.add(ids, scores(queries[i], vectors, info.metric), payloads)
        if matcher is not None:
            matcher.finish()

    def _no_sparse(self, field: str, given: bool) -> None:  # noqa: FBT001 - whether the field is given
        if given:
            raise checks.no_sparse_vectors(field, type(self).__name__, self._tenant)

    def _open(self, name: Any) -> CollectionInfo:
        found = self._describe(name) if isinstance(name, str) and checks.NAME.fullmatch(name) else None
        if found is None:
            raise checks.not_found(name, self._tenant)
        return found

    def _present(self, info: CollectionInfo, ids: Sequence[str]) -> set[str]:
        """Those of some ids that are there."""
        there: set[str] = set()
        for part in _parts(ids):
            there.update(self._read(info, part, vectors=False, payloads=False).ids)
        return there


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    unique = list(dict.fromkeys(ids))
    return (unique[start : start + AT_ONCE] for start in range(0, len(unique), AT_ONCE))


def _payload(text: str) -> dict[str, Any] | None:
    return json.loads(text) if text else None


def _settled(info: CollectionInfo, query: npt.NDArray[np.float32], rows: Rows, k: int) -> bool:
    """Whether the last candidate is so far behind the k-th that what comes after it cannot be nearer."""
    edge, last = float(rows.nearness[k - 1]), float(rows.nearness[-1])
    scale = max(abs(edge), abs(last))
    if info.metric == "cosine":
        scale = 1.0
    elif info.metric == "dot":
        scale = max(scale, float(np.linalg.norm(query) * np.linalg.norm(rows.vectors, axis=1).max()))
    return edge - last > scale * info.dimension * float(np.finfo(np.float32).eps)
