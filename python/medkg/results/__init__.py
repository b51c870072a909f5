"""What calls return: plain, frozen values. Arrays are numpy arrays that own the memory the answer was written to."""

from __future__ import annotations

from medkg.results.embedding import EmbeddingResult, SparseEmbeddingResult
from medkg.results.gpu import DeviceDetails, DeviceInfo, GpuStatus, Lease, LeaseInfo
from medkg.results.models import ModelInfo, TokenizerFile
from medkg.results.reranking import RankedDocument, RerankBatchResult, RerankQuery, RerankResult
from medkg.results.usage import CacheStats, EndpointInfo, RegisteredServer, Usage
from medkg.results.vector import (
    CollectionInfo,
    CollectionStatistics,
    CollectionUsage,
    ExportBatch,
    FetchResult,
    Hit,
    Latency,
    RankFusion,
    RecallReport,
    SparseVectors,
    TenantStatistics,
    UpsertResult,
)

__all__ = [
    "CacheStats",
    "CollectionInfo",
    "CollectionStatistics",
    "CollectionUsage",
    "DeviceDetails",
    "DeviceInfo",
    "EmbeddingResult",
    "EndpointInfo",
    "ExportBatch",
    "FetchResult",
    "GpuStatus",
    "Hit",
    "Latency",
    "Lease",
    "LeaseInfo",
    "ModelInfo",
    "RankFusion",
    "RankedDocument",
    "RecallReport",
    "RegisteredServer",
    "RerankBatchResult",
    "RerankQuery",
    "RerankResult",
    "SparseEmbeddingResult",
    "SparseVectors",
    "TenantStatistics",
    "TokenizerFile",
    "UpsertResult",
    "Usage",
]
