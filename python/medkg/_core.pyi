from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from medkg.config import ClientConfig
from medkg.filters import Filter
from medkg.results import (
    CacheStats,
    CollectionInfo,
    CollectionStatistics,
    DeviceDetails,
    DeviceInfo,
    EmbeddingResult,
    ExportBatch,
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

__version__: str
__all__ = [
    "AsyncEmbedding",
    "AsyncEmbeddingStream",
    "AsyncGpu",
    "AsyncReranking",
    "AsyncStatusWatch",
    "AsyncVector",
    "AsyncVectorExport",
    "Embedding",
    "EmbeddingStream",
    "Gpu",
    "Reranking",
    "StatusWatch",
    "Vector",
    "VectorExport",
    "__version__",
    "after_fork_in_child",
    "before_exit",
]

_Call: TypeAlias = tuple[str | None, float | None, str | None, str | None, str | None]
_Embed: TypeAlias = tuple[str | None, str | None, str | None, str | None, str | None, int | None]
_EmbedSparse: TypeAlias = tuple[str | None, str | None, int | None]
_Rerank: TypeAlias = tuple[str | None, str | None, float | None, int | None, str | None, str | None]
_Search: TypeAlias = tuple[int, bool, Filter | None, float | None, RankFusion | None]
_Progress: TypeAlias = Callable[[int, int], object]

def after_fork_in_child() -> None: ...
def before_exit() -> None: ...

class Embedding:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def embed(
        self,
        call: _Call,
        texts: Sequence[str],
        how: _Embed,
        progress: _Progress | None,
    ) -> EmbeddingResult: ...
    def embed_stream(
        self,
        call: _Call,
        texts: Iterable[str],
        how: _Embed,
        batch_size: int | None,
    ) -> EmbeddingStream: ...
    def embed_sparse(
        self,
        call: _Call,
        texts: Sequence[str],
        how: _EmbedSparse,
        progress: _Progress | None,
    ) -> SparseEmbeddingResult: ...
    def models(self, call: _Call) -> list[ModelInfo]: ...
    def tokenizer(self, call: _Call, model: str | None) -> TokenizerFile: ...
    def cache_stats(self) -> CacheStats | None: ...
    def forget(self, call: _Call, digest: str | None) -> int: ...
    def close(self) -> None: ...

@final
class AsyncEmbedding:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def embed(
        self,
        call: _Call,
        texts: Sequence[str],
        how: _Embed,
        progress: _Progress | None,
    ) -> Awaitable[EmbeddingResult]: ...
    def embed_stream(
        self,
        call: _Call,
        texts: Iterable[str] | AsyncIterable[str],
        how: _Embed,
        batch_size: int | None,
    ) -> AsyncEmbeddingStream: ...
    def embed_sparse(
        self,
        call: _Call,
        texts: Sequence[str],
        how: _EmbedSparse,
        progress: _Progress | None,
    ) -> Awaitable[SparseEmbeddingResult]: ...
    def models(self, call: _Call) -> Awaitable[list[ModelInfo]]: ...
    def tokenizer(self, call: _Call, model: str | None) -> Awaitable[TokenizerFile]: ...
    def cache_stats(self) -> CacheStats | None: ...
    def forget(self, call: _Call, digest: str | None) -> Awaitable[int]: ...
    def close(self) -> None: ...

class EmbeddingStream:
    def push(self, text: str) -> bool: ...
    def finish(self) -> None: ...
    def next(self) -> EmbeddingResult | None: ...
    def close(self) -> None: ...

@final
class AsyncEmbeddingStream:
    def push(self, text: str) -> bool: ...
    def finish(self) -> None: ...
    def next(self) -> Awaitable[EmbeddingResult | None]: ...
    def close(self) -> None: ...

class Reranking:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def rerank(
        self,
        call: _Call,
        query: str,
        documents: Sequence[str],
        first_stage_scores: Sequence[float] | None,
        how: _Rerank,
    ) -> RerankResult: ...
    def rerank_batch(self, call: _Call, queries: Sequence[RerankQuery], how: _Rerank) -> RerankBatchResult: ...
    def models(self, call: _Call) -> list[ModelInfo]: ...
    def close(self) -> None: ...

@final
class AsyncReranking:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def rerank(
        self,
        call: _Call,
        query: str,
        documents: Sequence[str],
        first_stage_scores: Sequence[float] | None,
        how: _Rerank,
    ) -> Awaitable[RerankResult]: ...
    def rerank_batch(
        self, call: _Call, queries: Sequence[RerankQuery], how: _Rerank
    ) -> Awaitable[RerankBatchResult]: ...
    def models(self, call: _Call) -> Awaitable[list[ModelInfo]]: ...
    def close(self) -> None: ...

class Vector:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def create_collection(
        self,
        call: _Call,
        name: str,
        dimensions: tuple[int, int],
        how: tuple[str, str],
        exist_ok: bool,
    ) -> CollectionInfo: ...
    def collections(self, call: _Call) -> list[CollectionInfo]: ...
    def drop_collection(self, call: _Call, name: str) -> int: ...
    def upsert(
        self,
        call: _Call,
        name: str,
        ids: Sequence[str],
        vectors: tuple[npt.NDArray[np.float32], Sparse | None],
        payloads: Sequence[Mapping[str, Any] | None] | None,
    ) -> UpsertResult: ...
    def delete(self, call: _Call, name: str, ids: Sequence[str]) -> int: ...
    def search(
        self,
        call: _Call,
        name: str,
        queries: npt.NDArray[np.float32] | None,
        sparse: Sparse | None,
        how: _Search,
    ) -> list[list[Hit]]: ...
    def fetch(
        self,
        call: _Call,
        name: str,
        ids: Sequence[str],
        wanted: tuple[bool, bool, bool],
    ) -> FetchResult: ...
    def count(self, call: _Call, name: str, wanted: Filter | None) -> int: ...
    def statistics(self, call: _Call, name: str) -> CollectionStatistics: ...
    def export(self, call: _Call, name: str) -> VectorExport: ...
    def tenant_statistics(self, call: _Call) -> TenantStatistics: ...
    def check_recall(self, call: _Call, name: str, how: tuple[int, int, int]) -> RecallReport: ...
    def close(self) -> None: ...

@final
class AsyncVector:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def create_collection(
        self,
        call: _Call,
        name: str,
        dimensions: tuple[int, int],
        how: tuple[str, str],
        exist_ok: bool,
    ) -> Awaitable[CollectionInfo]: ...
    def collections(self, call: _Call) -> Awaitable[list[CollectionInfo]]: ...
    def drop_collection(self, call: _Call, name: str) -> Awaitable[int]: ...
    def upsert(
        self,
        call: _Call,
        name: str,
        ids: Sequence[str],
        vectors: tuple[npt.NDArray[np.float32], Sparse | None],
        payloads: Sequence[Mapping[str, Any] | None] | None,
    ) -> Awaitable[UpsertResult]: ...
    def delete(self, call: _Call, name: str, ids: Sequence[str]) -> Awaitable[int]: ...
    def search(
        self,
        call: _Call,
        name: str,
        queries: npt.NDArray[np.float32] | None,
        sparse: Sparse | None,
        how: _Search,
    ) -> Awaitable[list[list[Hit]]]: ...
    def fetch(
        self,
        call: _Call,
        name: str,
        ids: Sequence[str],
        wanted: tuple[bool, bool, bool],
    ) -> Awaitable[FetchResult]: ...
    def count(self, call: _Call, name: str, wanted: Filter | None) -> Awaitable[int]: ...
    def statistics(self, call: _Call, name: str) -> Awaitable[CollectionStatistics]: ...
    def export(self, call: _Call, name: str) -> Awaitable[AsyncVectorExport]: ...
    def tenant_statistics(self, call: _Call) -> Awaitable[TenantStatistics]: ...
    def check_recall(self, call: _Call, name: str, how: tuple[int, int, int]) -> Awaitable[RecallReport]: ...
    def close(self) -> None: ...

class Gpu:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def status(self, call: _Call) -> GpuStatus: ...
    def watch_status(self, call: _Call) -> StatusWatch: ...
    def devices(self, call: _Call) -> list[DeviceInfo]: ...
    def device(self, call: _Call, device: str) -> DeviceDetails: ...
    def allocate(
        self,
        call: _Call,
        memory_bytes: int,
        device: str | None,
        ttl: float | None,
        owner: str,
        wait: float | None,
        outlives_connection: bool,
    ) -> Lease: ...
    def renew(self, call: _Call, lease_id: str, ttl: float | None) -> datetime: ...
    def release(self, call: _Call, lease_id: str) -> int: ...
    def close(self) -> None: ...

@final
class AsyncGpu:
    def __new__(cls, config: ClientConfig) -> Self: ...
    def status(self, call: _Call) -> Awaitable[GpuStatus]: ...
    def watch_status(self, call: _Call) -> AsyncStatusWatch: ...
    def devices(self, call: _Call) -> Awaitable[list[DeviceInfo]]: ...
    def device(self, call: _Call, device: str) -> Awaitable[DeviceDetails]: ...
    def allocate(
        self,
        call: _Call,
        memory_bytes: int,
        device: str | None,
        ttl: float | None,
        owner: str,
        wait: float | None,
        outlives_connection: bool,
    ) -> Awaitable[Lease]: ...
    def renew(self, call: _Call, lease_id: str, ttl: float | None) -> Awaitable[datetime]: ...
    def release(self, call: _Call, lease_id: str) -> Awaitable[int]: ...
    def close(self) -> None: ...

class VectorExport:
    def info(self) -> CollectionInfo: ...
    def next(self) -> ExportBatch | None: ...
    def close(self) -> None: ...

@final
class AsyncVectorExport:
    def info(self) -> CollectionInfo: ...
    def next(self) -> Awaitable[ExportBatch | None]: ...
    def close(self) -> None: ...

class StatusWatch:
    def next(self) -> GpuStatus | None: ...
    def close(self) -> None: ...

@final
class AsyncStatusWatch:
    def next(self) -> Awaitable[GpuStatus | None]: ...
    def close(self) -> None: ...
