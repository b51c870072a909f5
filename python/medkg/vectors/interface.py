"""The interface itself: what a home of vectors promises, whichever it is. See `medkg.vectors` for the homes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from medkg.filters import Filter
    from medkg.results import CollectionInfo, FetchResult, Hit, RankFusion, UpsertResult
    from medkg.results.vector import Sparse

__all__ = ["Collections", "Found", "Metric", "VectorStore"]

Metric: TypeAlias = Literal["cosine", "dot", "l2"]
"""How nearness is measured; larger scores are always nearer."""

# `list` is a method below, so its class body cannot say `list[...]`.
Collections: TypeAlias = "list[CollectionInfo]"
Found: TypeAlias = "list[list[Hit]]"


class VectorStore(ABC):
    """Named collections of vectors of one tenant, and exact search over them.

    Every method raises :class:`~medkg.errors.VectorValidationError` for an argument that is wrong, naming it
    (``vectors[3]``), and :class:`~medkg.errors.CollectionNotFoundError` where the tenant has no such collection. What a
    home's own library or the network fails with is raised as it is. Sparse vectors are kept by a gpu-server only; the
    other homes raise a :class:`~medkg.errors.ServiceError` with the code ``UNIMPLEMENTED`` where one is given.
    """

    __slots__ = ("_tenant",)

    def __init__(self, tenant: str) -> None:
        """Belong to a tenant."""
        self._tenant = tenant

    @property
    def tenant(self) -> str:
        """Whose collections these are."""
        return self._tenant

    @abstractmethod
    def create(
        self,
        name: str,
        dimension: int,
        metric: Metric = "cosine",
        *,
        sparse_dimension: int = 0,
        exist_ok: bool = False,
    ) -> CollectionInfo:
        """Make an empty collection.

        Args:
            name: 1 to 127 characters of ``[A-Za-z0-9._-]``, the first a letter or a digit.
            dimension: Elements of every vector, 1 to 8,192.
            metric: How nearness is measured.
            sparse_dimension: Elements of the sparse vectors that points may have beside the dense one; 0: they have
                none. In a gpu-server only.
            exist_ok: Accept a collection of the same dimensions and metric as it is.

        Raises:
            AlreadyExistsError: It is there, and ``exist_ok`` is False or it differs.
        """

    @abstractmethod
    def drop(self, name: str) -> int:
        """Remove a collection; returns how many points were in it."""

    @abstractmethod
    def list(self) -> Collections:
        """The tenant's collections, sorted by name."""

    @abstractmethod
    def upsert(
        self,
        name: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        payloads: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        sparse: Sparse | None = None,
    ) -> UpsertResult:
        """Add points, or replace those whose id is there already.

        Args:
            name: The collection.
            ids: At least one, 1 to 512 bytes each, no duplicates, no control characters.
            vectors: Shape ``(len(ids), dimension)``, float32, C-contiguous, finite; no zero vector under cosine.
            payloads: None, or one JSON object (or None) per id, at most 64 KiB each.
            sparse: One sparse vector per id, in a collection with a ``sparse_dimension``; see
                :meth:`medkg.VectorClient.upsert`.
        """

    @abstractmethod
    def delete(self, name: str, ids: Sequence[str]) -> int:
        """Remove points by id; returns how many of the ids were there."""

    @abstractmethod
    def fetch(
        self,
        name: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        with_payload: bool = True,
        with_sparse: bool = False,
    ) -> FetchResult:
        """Read points by id, in the order asked for; ids that are not there are listed in ``missing``."""

    @abstractmethod
    def count(self, name: str, filter: Filter | None = None) -> int:  # noqa: A002 - what it is called everywhere
        """How many points there are, or how many match a filter of :mod:`medkg.filters`."""

    @abstractmethod
    def search(
        self,
        name: str,
        queries: npt.NDArray[np.float32] | None = None,
        k: int = 10,
        *,
        sparse: Sparse | None = None,
        fusion: RankFusion | None = None,
        filter: Filter | None = None,  # noqa: A002 - what it is called everywhere
        with_payload: bool = True,
        score_threshold: float | None = None,
    ) -> Found:
        """Find the exact k nearest points of each query, best first; equal scores are ordered by id.

        Args:
            name: The collection.
            queries: Shape ``(q, dimension)``, or ``(dimension,)`` for one query; float32, C-contiguous, finite.
                None with ``sparse``: only sparse vectors are searched.
            k: Points to return for each query, 1 to 10,000; at most 200,000 over all queries.
            sparse: Sparse queries, one for each row of ``queries`` if there are both; in a gpu-server only. See
                :meth:`medkg.VectorClient.search`.
            fusion: How the two are fused; None: by its defaults.
            filter: Compare only points that match; see :mod:`medkg.filters`.
            with_payload: Return each point's payload.
            score_threshold: Return only points with at least this score.

        Returns:
            One list per query, also for a single one. A score is the cosine, the dot product, or minus the Euclidean
            distance.
        """

    def close(self) -> None:  # noqa: B027 - a home that holds nothing has nothing to close
        """Let go of what the home holds; further calls raise."""

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Show whose it is."""
        return f"{type(self).__name__}(tenant={self._tenant!r})"
