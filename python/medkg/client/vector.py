"""Collections of vectors, waiting for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from medkg.base import Client
from medkg.call_context import resolve
from medkg.client.native import native
from medkg.exporting import VectorExport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from medkg.base import Half
    from medkg.call_context import CallOptions
    from medkg.filters import Filter
    from medkg.results import (
        CollectionInfo,
        CollectionStatistics,
        FetchResult,
        Hit,
        RankFusion,
        RecallReport,
        TenantStatistics,
        UpsertResult,
    )
    from medkg.results.vector import Sparse


class VectorClient(Client[native.Vector]):
    """Named collections of vectors and exact search over them. Collections belong to the tenant of the call."""

    __slots__ = ()
    _half: ClassVar[Half] = native.Vector

    def create_collection(
        self,
        name: str,
        dimension: int,
        metric: Literal["cosine", "dot", "l2"] = "cosine",
        *,
        storage: Literal["f32", "f16", "bf16"] = "f32",
        sparse_dimension: int = 0,
        exist_ok: bool = False,
        **call: Unpack[CallOptions],
    ) -> CollectionInfo:
        """Make an empty collection.

        Args:
            name: 1 to 127 characters of ``[A-Za-z0-9._-]``, the first a letter or a digit.
            dimension: Elements of every vector, 1 to 8,192.
            metric: How nearness is measured; larger scores are always nearer.
            storage: Element type of the vectors on the device: ``"f16"`` and ``"bf16"`` take half the memory, and
                scores are those of the rounded vectors. :meth:`fetch` returns what was written whatever it is.
            sparse_dimension: Elements of the sparse vectors that points may have beside the dense one, at most
                2,147,483,647: ``SparseEmbeddingResult.dimension`` of the model. 0: points have none.
            exist_ok: Accept a collection of the same dimensions, metric and storage as it is.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            AlreadyExistsError: It is there, and ``exist_ok`` is False or it differs.
        """
        dimensions, how = (dimension, sparse_dimension), (metric, storage)
        return self._native.create_collection(resolve(**call), name, dimensions, how, exist_ok)

    def collections(self, **call: Unpack[CallOptions]) -> list[CollectionInfo]:
        """The tenant's collections, sorted by name."""
        return self._native.collections(resolve(**call))

    def drop_collection(self, name: str, **call: Unpack[CallOptions]) -> int:
        """Remove a collection and its file; returns how many points were in it."""
        return self._native.drop_collection(resolve(**call), name)

    def upsert(
        self,
        name: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        payloads: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        sparse: Sparse | None = None,
        **call: Unpack[CallOptions],
    ) -> UpsertResult:
        """Add points, or replace those whose id is there already. On disk when this returns.

        Many points are split into several requests, sent in order; each is written whole or not at all, and an error
        in a later one says how many points are written.

        Args:
            name: The collection.
            ids: One per vector, 1 to 512 bytes each, no duplicates.
            vectors: Shape ``(len(ids), dimension)``, float32, C-contiguous, finite.
            payloads: None, or one JSON object (or None) per id, at most 64 KiB each.
            sparse: One sparse vector per id, in a collection with a ``sparse_dimension``: what ``embed_sparse`` gave,
                or ``(indptr, indices, values)``; at most 4,096 terms a row, and a row without terms is no sparse
                vector. None: none has one, also those that are replaced.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            VectorValidationError: An argument is wrong; it is named, e.g. ``vectors[3]``.
            CollectionNotFoundError: The tenant has no collection of that name.
        """
        return self._native.upsert(resolve(**call), name, ids, (vectors, sparse), payloads)

    def delete(self, name: str, ids: Sequence[str], **call: Unpack[CallOptions]) -> int:
        """Remove points by id; returns how many of the ids were there."""
        return self._native.delete(resolve(**call), name, ids)

    def search(
        self,
        name: str,
        queries: npt.NDArray[np.float32] | None = None,
        k: int = 10,
        *,
        sparse: Sparse | None = None,
        fusion: RankFusion | None = None,
        with_payload: bool = True,
        filter: Filter | None = None,  # noqa: A002 - what it is called everywhere
        score_threshold: float | None = None,
        **call: Unpack[CallOptions],
    ) -> list[list[Hit]]:
        """Find the exact k nearest points of each query, best first; equal scores are ordered by id.

        By dense vectors, by sparse ones (the inner product; points that share no term with a query are not found), or
        by both: then the ranks that the two give are fused.

        Args:
            name: The collection.
            queries: Shape ``(q, dimension)``, or ``(dimension,)`` for one query; float32, C-contiguous, finite. None
                with ``sparse``: only sparse vectors are searched.
            k: Points to return for each query, 1 to 10,000.
            sparse: Sparse queries, one for each row of ``queries`` if there are both: what ``embed_sparse`` gave, or
                ``(indptr, indices, values)``.
            fusion: How the two are fused; None: by its defaults.
            with_payload: Return each point's payload.
            filter: Compare only points that match; see :mod:`medkg.filters`.
            score_threshold: Return only points with at least this score. Under ``"l2"`` a score is minus the
                distance, so -2.0 returns points at a distance of at most 2. With both kinds of queries it is the fused
                score.
            **call: See :class:`medkg.call_context.CallOptions`.

        Returns:
            One list per query, also for a single one.
        """
        how = (k, with_payload, filter, score_threshold, fusion)
        return self._native.search(resolve(**call), name, queries, sparse, how)

    def fetch(
        self,
        name: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        with_payload: bool = True,
        with_sparse: bool = False,
        **call: Unpack[CallOptions],
    ) -> FetchResult:
        """Read points by id; ids that are not there are listed in ``missing``.

        ``with_sparse`` is for collections with a ``sparse_dimension``.
        """
        return self._native.fetch(resolve(**call), name, ids, (with_vectors, with_payload, with_sparse))

    def count(
        self,
        name: str,
        filter: Filter | None = None,  # noqa: A002 - what it is called everywhere
        **call: Unpack[CallOptions],
    ) -> int:
        """How many points there are, or how many match a filter of :mod:`medkg.filters`."""
        return self._native.count(resolve(**call), name, filter)

    def statistics(self, name: str, **call: Unpack[CallOptions]) -> CollectionStatistics:
        """Size, memory and use of a collection."""
        return self._native.statistics(resolve(**call), name)

    def export(self, name: str, **call: Unpack[CallOptions]) -> VectorExport:
        """Read all points of a collection, as they are at one moment, batch by batch and in no order that is promised.

        ``timeout`` is for the first answer; the export itself has no end of its own. Memory does not grow with the
        collection, on either side. Until it is read or closed, the server keeps what it still needs: take the batches
        without long pauses. :mod:`medkg.vectors.files` writes them into files.

        Example::

            with client.export("literature") as export:
                for batch in export:
                    print(batch.ids, batch.vectors.shape, batch.payloads)

        Raises:
            CollectionNotFoundError: The tenant has no collection of that name.
            RateLimitedError: Too many exports run on the server.
        """
        return VectorExport(self._native.export(resolve(**call), name))

    def tenant_statistics(self, **call: Unpack[CallOptions]) -> TenantStatistics:
        """Size, memory and use of all collections of the tenant."""
        return self._native.tenant_statistics(resolve(**call))

    def check_recall(
        self,
        name: str,
        *,
        sample: int = 32,
        k: int = 10,
        seed: int = 0,
        sparse: bool = False,
        **call: Unpack[CallOptions],
    ) -> RecallReport:
        """Compare what search answers with the exact nearest points, which the server computes anew in float64.

        The server reads the whole collection twice, so give a large one time (``timeout=``). Points whose float64
        scores differ by at most 1e-6 may change places. With storage f16 or bf16 search scores rounded vectors, and
        recall tells how many of the nearest points that misses.

        Args:
            name: The collection.
            sample: Stored points that are taken as queries, 1 to 1,000; all of them, where there are fewer.
            k: Nearest points that are compared for each, 1 to 100.
            seed: Chooses the sample: the same one for the same points.
            sparse: Check search by sparse vectors instead of that by dense ones; the queries are points that have one.
                For collections with a ``sparse_dimension``.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            CollectionNotFoundError: The tenant has no collection of that name.
            ServiceTimeoutError: The deadline passed before all was compared.
        """
        return self._native.check_recall(resolve(**call), name, (sample, k, seed, sparse))
