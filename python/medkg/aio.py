"""The awaitable twins of the clients in :mod:`medkg.client`: same methods, same arguments, same answers.

Cancelling the task that awaits a call cancels the call on the wire too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from medkg.base import Client, Configurable, NativeT, configure
from medkg.call_context import resolve
from medkg.client.native import native
from medkg.exporting import AsyncVectorExport
from medkg.streaming import async_answers
from medkg.watching import AsyncStatusWatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType
    from typing import Literal, TypeAlias

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self, Unpack

    from medkg.base import Half
    from medkg.call_context import CallOptions
    from medkg.config import ClientConfig, ClientOptions
    from medkg.filters import Filter
    from medkg.results import (
        CacheStats,
        CollectionInfo,
        CollectionStatistics,
        DeviceDetails,
        DeviceInfo,
        EmbeddingResult,
        FetchResult,
        GpuStatus,
        Hit,
        Lease,
        ModelInfo,
        RankFusion,
        RecallReport,
        RerankBatchResult,
        RerankQuery,
        RerankResult,
        SparseEmbeddingResult,
        TenantStatistics,
        TokenizerFile,
        UpsertResult,
    )
    from medkg.results.vector import Sparse

    Progress: TypeAlias = Callable[[int, int], object]

__all__ = [
    "AsyncEmbeddingClient",
    "AsyncGpuClient",
    "AsyncRerankingClient",
    "AsyncServices",
    "AsyncVectorClient",
    "connect_async",
]

T = TypeVar("T")


class AsyncClient(Client[NativeT]):
    """What every awaitable client has."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close."""
        self.close()


async def _reporting(progress: Progress | None, start: Callable[[Progress | None], Awaitable[T]]) -> T:
    """What ``start(report)`` gives; what ``progress`` raises when it is reported to cancels it and is raised."""
    if progress is None:
        return await start(None)
    raised: list[BaseException] = []

    def report(done: int, total: int) -> None:
        if answer.done():
            return
        try:
            progress(done, total)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the awaiting task
            raised.append(error)
            answer.cancel()

    answer = asyncio.ensure_future(start(report))
    try:
        return await answer
    except asyncio.CancelledError:
        if raised:
            raise raised[0] from None
        raise


class AsyncEmbeddingClient(AsyncClient[native.AsyncEmbedding]):
    """Texts to vectors."""

    __slots__ = ()
    _half: ClassVar[Half] = native.AsyncEmbedding

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"] | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        dimensions: int | None = None,
        truncation: Literal["right", "left", "refuse"] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **call: Unpack[CallOptions],
    ) -> EmbeddingResult:
        """As :meth:`medkg.EmbeddingClient.embed`; ``progress`` is called from the event loop."""
        how = (model, dtype, truncation, prompt_name, instruction, dimensions)
        return await _reporting(progress, lambda report: self._native.embed(resolve(**call), texts, how, report))

    def embed_stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        batch_size: int | None = None,
        model: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"] | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        dimensions: int | None = None,
        truncation: Literal["right", "left", "refuse"] | None = None,
        **call: Unpack[CallOptions],
    ) -> AsyncGenerator[EmbeddingResult, None]:
        """As :meth:`medkg.EmbeddingClient.embed_stream`; ``texts`` is pulled on the event loop.

        Leave a loop over it early inside ``contextlib.aclosing``, or the call ends when asyncio closes the generator.
        """
        how = (model, dtype, truncation, prompt_name, instruction, dimensions)
        return async_answers(self._native.embed_stream(resolve(**call), texts, how, batch_size), texts)

    async def embed_sparse(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        max_terms: int | None = None,
        truncation: Literal["right", "left", "refuse"] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **call: Unpack[CallOptions],
    ) -> SparseEmbeddingResult:
        """As :meth:`medkg.EmbeddingClient.embed_sparse`; ``progress`` is called from the event loop."""
        how = (model, truncation, max_terms)
        return await _reporting(progress, lambda report: self._native.embed_sparse(resolve(**call), texts, how, report))

    async def models(self, **call: Unpack[CallOptions]) -> list[ModelInfo]:
        """As :meth:`medkg.EmbeddingClient.models`."""
        return await self._native.models(resolve(**call))

    async def tokenizer(self, model: str | None = None, **call: Unpack[CallOptions]) -> TokenizerFile:
        """As :meth:`medkg.EmbeddingClient.tokenizer`."""
        return await self._native.tokenizer(resolve(**call), model)

    def cache_stats(self) -> CacheStats | None:
        """As :meth:`medkg.EmbeddingClient.cache_stats`; nothing is waited for."""
        return self._native.cache_stats()

    async def forget_cached(self, digest: str | None = None, **call: Unpack[CallOptions]) -> int:
        """As :meth:`medkg.EmbeddingClient.forget_cached`."""
        return await self._native.forget(resolve(**call), digest)


class AsyncRerankingClient(AsyncClient[native.AsyncReranking]):
    """Query-document pairs to relevance scores."""

    __slots__ = ()
    _half: ClassVar[Half] = native.AsyncReranking

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        first_stage_scores: Sequence[float] | None = None,
        fusion: Literal["none", "standardized_sum"] | None = None,
        fusion_weight: float | None = None,
        top_n: int | None = None,
        model: str | None = None,
        truncation: Literal["right", "refuse"] | None = None,
        instruction: str | None = None,
        **call: Unpack[CallOptions],
    ) -> RerankResult:
        """As :meth:`medkg.RerankingClient.rerank`."""
        how = (model, fusion, fusion_weight, top_n, truncation, instruction)
        return await self._native.rerank(resolve(**call), query, documents, first_stage_scores, how)

    async def rerank_batch(
        self,
        queries: Sequence[RerankQuery],
        *,
        fusion: Literal["none", "standardized_sum"] | None = None,
        fusion_weight: float | None = None,
        top_n: int | None = None,
        model: str | None = None,
        truncation: Literal["right", "refuse"] | None = None,
        instruction: str | None = None,
        **call: Unpack[CallOptions],
    ) -> RerankBatchResult:
        """As :meth:`medkg.RerankingClient.rerank_batch`."""
        how = (model, fusion, fusion_weight, top_n, truncation, instruction)
        return await self._native.rerank_batch(resolve(**call), queries, how)

    async def models(self, **call: Unpack[CallOptions]) -> list[ModelInfo]:
        """As :meth:`medkg.RerankingClient.models`."""
        return await self._native.models(resolve(**call))


class AsyncVectorClient(AsyncClient[native.AsyncVector]):
    """Named collections of vectors and exact search over them."""

    __slots__ = ()
    _half: ClassVar[Half] = native.AsyncVector

    async def create_collection(
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
        """As :meth:`medkg.VectorClient.create_collection`."""
        dimensions, how = (dimension, sparse_dimension), (metric, storage)
        return await self._native.create_collection(resolve(**call), name, dimensions, how, exist_ok)

    async def collections(self, **call: Unpack[CallOptions]) -> list[CollectionInfo]:
        """As :meth:`medkg.VectorClient.collections`."""
        return await self._native.collections(resolve(**call))

    async def drop_collection(self, name: str, **call: Unpack[CallOptions]) -> int:
        """As :meth:`medkg.VectorClient.drop_collection`."""
        return await self._native.drop_collection(resolve(**call), name)

    async def upsert(
        self,
        name: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.float32],
        payloads: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        sparse: Sparse | None = None,
        **call: Unpack[CallOptions],
    ) -> UpsertResult:
        """As :meth:`medkg.VectorClient.upsert`."""
        return await self._native.upsert(resolve(**call), name, ids, (vectors, sparse), payloads)

    async def delete(self, name: str, ids: Sequence[str], **call: Unpack[CallOptions]) -> int:
        """As :meth:`medkg.VectorClient.delete`."""
        return await self._native.delete(resolve(**call), name, ids)

    async def search(
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
        """As :meth:`medkg.VectorClient.search`."""
        how = (k, with_payload, filter, score_threshold, fusion)
        return await self._native.search(resolve(**call), name, queries, sparse, how)

    async def fetch(
        self,
        name: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        with_payload: bool = True,
        with_sparse: bool = False,
        **call: Unpack[CallOptions],
    ) -> FetchResult:
        """As :meth:`medkg.VectorClient.fetch`."""
        return await self._native.fetch(resolve(**call), name, ids, (with_vectors, with_payload, with_sparse))

    async def count(
        self,
        name: str,
        filter: Filter | None = None,  # noqa: A002 - what it is called everywhere
        **call: Unpack[CallOptions],
    ) -> int:
        """As :meth:`medkg.VectorClient.count`."""
        return await self._native.count(resolve(**call), name, filter)

    async def statistics(self, name: str, **call: Unpack[CallOptions]) -> CollectionStatistics:
        """As :meth:`medkg.VectorClient.statistics`."""
        return await self._native.statistics(resolve(**call), name)

    async def export(self, name: str, **call: Unpack[CallOptions]) -> AsyncVectorExport:
        """As :meth:`medkg.VectorClient.export`, for ``async with`` and ``async for``."""
        return AsyncVectorExport(await self._native.export(resolve(**call), name))

    async def tenant_statistics(self, **call: Unpack[CallOptions]) -> TenantStatistics:
        """As :meth:`medkg.VectorClient.tenant_statistics`."""
        return await self._native.tenant_statistics(resolve(**call))

    async def check_recall(
        self,
        name: str,
        *,
        sample: int = 32,
        k: int = 10,
        seed: int = 0,
        sparse: bool = False,
        **call: Unpack[CallOptions],
    ) -> RecallReport:
        """As :meth:`medkg.VectorClient.check_recall`."""
        return await self._native.check_recall(resolve(**call), name, (sample, k, seed, sparse))


class AsyncGpuClient(AsyncClient[native.AsyncGpu]):
    """What a server computes on, and memory set aside on it."""

    __slots__ = ()
    _half: ClassVar[Half] = native.AsyncGpu

    async def status(self, **call: Unpack[CallOptions]) -> GpuStatus:
        """As :meth:`medkg.GpuClient.status`."""
        return await self._native.status(resolve(**call))

    def watch_status(self, **call: Unpack[CallOptions]) -> AsyncStatusWatch:
        """As :meth:`medkg.GpuClient.watch_status`, for ``async for``."""
        return AsyncStatusWatch(self._native.watch_status(resolve(**call)))

    async def devices(self, **call: Unpack[CallOptions]) -> list[DeviceInfo]:
        """As :meth:`medkg.GpuClient.devices`."""
        return await self._native.devices(resolve(**call))

    async def device(self, device: str, **call: Unpack[CallOptions]) -> DeviceDetails:
        """As :meth:`medkg.GpuClient.device`."""
        return await self._native.device(resolve(**call), device)

    async def allocate(
        self,
        memory_bytes: int,
        device: str | None = None,
        ttl: float | None = None,
        owner: str = "",
        *,
        wait: float | None = None,
        outlives_connection: bool = False,
        **call: Unpack[CallOptions],
    ) -> Lease:
        """As :meth:`medkg.GpuClient.allocate`."""
        request = (memory_bytes, device, ttl, owner, wait, outlives_connection)
        return await self._native.allocate(resolve(**call), *request)

    async def renew(self, lease_id: str, ttl: float | None = None, **call: Unpack[CallOptions]) -> datetime:
        """As :meth:`medkg.GpuClient.renew`."""
        return await self._native.renew(resolve(**call), lease_id, ttl)

    async def release(self, lease_id: str, **call: Unpack[CallOptions]) -> int:
        """As :meth:`medkg.GpuClient.release`."""
        return await self._native.release(resolve(**call), lease_id)


class AsyncServices(Configurable):
    """The awaitable clients of one configuration."""

    __slots__ = ("embedding", "gpu", "reranking", "vector")

    def __init__(self, config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> None:
        """As :class:`medkg.EmbeddingClient`."""
        shared: Any = native.Configuration(configure(config, fields))
        self._configuration = shared
        self.embedding = AsyncEmbeddingClient(shared)
        self.reranking = AsyncRerankingClient(shared)
        self.vector = AsyncVectorClient(shared)
        self.gpu = AsyncGpuClient(shared)

    def close(self) -> None:
        """Let the connections go; further calls raise."""
        for client in (self.embedding, self.reranking, self.vector, self.gpu):
            client.close()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close."""
        self.close()


def connect_async(config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> AsyncServices:
    """As :func:`medkg.connect`, with awaitable clients."""
    return AsyncServices(config, **fields)
