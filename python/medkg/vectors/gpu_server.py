"""The home in a gpu-server: each method is one of `VectorClient`, for one tenant.

It checks nothing itself: limits and errors are the client's and the server's, and the other homes follow them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.vectors.interface import VectorStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from medkg.client import VectorClient
    from medkg.filters import Filter
    from medkg.results import CollectionInfo, FetchResult, RankFusion, UpsertResult
    from medkg.results.vector import Sparse
    from medkg.vectors.interface import Collections, Found, Metric

__all__ = ["GpuServerStore"]


class GpuServerStore(VectorStore):
    """Collections of a gpu-server with the role ``vector``."""

    __slots__ = ("_client",)

    def __init__(self, client: VectorClient, *, tenant: str) -> None:
        """Use a client, which stays the caller's to close."""
        super().__init__(tenant)
        self._client = client

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
        return self._client.create_collection(
            name, dimension, metric, sparse_dimension=sparse_dimension, exist_ok=exist_ok, tenant=self._tenant
        )

    def drop(self, name: str) -> int:
        """See :meth:`VectorStore.drop`."""
        return self._client.drop_collection(name, tenant=self._tenant)

    def list(self) -> Collections:
        """See :meth:`VectorStore.list`."""
        return self._client.collections(tenant=self._tenant)

    def upsert(
        self,
        name: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        payloads: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        sparse: Sparse | None = None,
    ) -> UpsertResult:
        """See :meth:`VectorStore.upsert`. Many points are several requests, each written whole or not at all."""
        return self._client.upsert(name, ids, vectors, payloads, sparse=sparse, tenant=self._tenant)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """See :meth:`VectorStore.delete`."""
        return self._client.delete(name, ids, tenant=self._tenant)

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
        return self._client.fetch(
            name,
            ids,
            with_vectors=with_vectors,
            with_payload=with_payload,
            with_sparse=with_sparse,
            tenant=self._tenant,
        )

    def count(self, name: str, filter: Filter | None = None) -> int:  # noqa: A002 - as in the interface
        """See :meth:`VectorStore.count`."""
        return self._client.count(name, filter, tenant=self._tenant)

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
        return self._client.search(
            name,
            queries,
            k,
            sparse=sparse,
            fusion=fusion,
            filter=filter,
            with_payload=with_payload,
            score_threshold=score_threshold,
            tenant=self._tenant,
        )
