"""GPU inference for pipelines over medical literature, without torch in the worker.

``medkg.connect()`` gives clients for embeddings, reranking, vector search and the GPU of a ``gpu-server``::

    import medkg

    with medkg.connect(address="http://127.0.0.1:7070", tenant="demo") as services:
        vectors = services.embedding.embed(["Aspirin inhibits platelet aggregation."]).vectors

Importing this package is cheap: each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.importing import load

if TYPE_CHECKING:
    from medkg.aio import (
        AsyncEmbeddingClient,
        AsyncGpuClient,
        AsyncRerankingClient,
        AsyncServices,
        AsyncVectorClient,
        connect_async,
    )
    from medkg.call_context import CallOptions, context
    from medkg.client import (
        EmbeddingClient,
        GpuClient,
        GPUEmbeddingClient,
        Qwen3GRPCClient,
        Registration,
        RerankingClient,
        ServiceRegistry,
        Services,
        VectorClient,
        connect,
    )
    from medkg.client.native import version as __version__
    from medkg.config import (
        CacheConfig,
        ClientConfig,
        ClientOptions,
        CoalesceConfig,
        FallbackConfig,
        RegistryConfig,
        TlsConfig,
    )
    from medkg.errors import (
        AlreadyExistsError,
        AuthenticationError,
        CircuitOpenError,
        CollectionNotFoundError,
        ConfigError,
        EmbeddingError,
        EmbeddingProcessingError,
        EmbeddingValidationError,
        FailedPreconditionError,
        GpuLostError,
        GpuNotAvailableError,
        GpuOutOfMemoryError,
        MedkgError,
        ModelNotFoundError,
        NotFoundError,
        PermissionDeniedError,
        RateLimitedError,
        RerankingValidationError,
        ServiceError,
        ServiceTimeoutError,
        ServiceUnavailableError,
        StorageFullError,
        ValidationError,
        VectorValidationError,
    )
    from medkg.results import (
        CacheStats,
        CollectionInfo,
        CollectionStatistics,
        CollectionUsage,
        DeviceDetails,
        DeviceInfo,
        EmbeddingResult,
        EndpointInfo,
        ExportBatch,
        FetchResult,
        GpuStatus,
        Hit,
        Latency,
        Lease,
        LeaseInfo,
        ModelInfo,
        RankedDocument,
        RankFusion,
        RecallReport,
        RegisteredServer,
        RerankBatchResult,
        RerankQuery,
        RerankResult,
        SparseEmbeddingResult,
        SparseVectors,
        TenantStatistics,
        TokenizerFile,
        UpsertResult,
        Usage,
    )

__all__ = [
    "AlreadyExistsError",
    "AsyncEmbeddingClient",
    "AsyncGpuClient",
    "AsyncRerankingClient",
    "AsyncServices",
    "AsyncVectorClient",
    "AuthenticationError",
    "CacheConfig",
    "CacheStats",
    "CallOptions",
    "CircuitOpenError",
    "ClientConfig",
    "ClientOptions",
    "CoalesceConfig",
    "CollectionInfo",
    "CollectionNotFoundError",
    "CollectionStatistics",
    "CollectionUsage",
    "ConfigError",
    "DeviceDetails",
    "DeviceInfo",
    "EmbeddingClient",
    "EmbeddingError",
    "EmbeddingProcessingError",
    "EmbeddingResult",
    "EmbeddingValidationError",
    "EndpointInfo",
    "ExportBatch",
    "FailedPreconditionError",
    "FallbackConfig",
    "FetchResult",
    "GPUEmbeddingClient",
    "GpuClient",
    "GpuLostError",
    "GpuNotAvailableError",
    "GpuOutOfMemoryError",
    "GpuStatus",
    "Hit",
    "Latency",
    "Lease",
    "LeaseInfo",
    "MedkgError",
    "ModelInfo",
    "ModelNotFoundError",
    "NotFoundError",
    "PermissionDeniedError",
    "Qwen3GRPCClient",
    "RankFusion",
    "RankedDocument",
    "RateLimitedError",
    "RecallReport",
    "RegisteredServer",
    "Registration",
    "RegistryConfig",
    "RerankBatchResult",
    "RerankQuery",
    "RerankResult",
    "RerankingClient",
    "RerankingValidationError",
    "ServiceError",
    "ServiceRegistry",
    "ServiceTimeoutError",
    "ServiceUnavailableError",
    "Services",
    "SparseEmbeddingResult",
    "SparseVectors",
    "StorageFullError",
    "TenantStatistics",
    "TlsConfig",
    "TokenizerFile",
    "UpsertResult",
    "Usage",
    "ValidationError",
    "VectorClient",
    "VectorValidationError",
    "__version__",
    "connect",
    "connect_async",
    "context",
]

_HOMES = ("errors", "call_context", "client", "config", "results", "aio")
"""Where the names of ``__all__`` live, cheapest first."""


def __getattr__(name: str) -> Any:
    """Load a name when it is first used (PEP 562)."""
    if name in _HOMES or name in {"contracts", "filters", "local", "vectors"}:
        return load(f"medkg.{name}")
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    if name == "__version__":
        value = load("medkg.client.native").version
    else:
        homes = (load(f"medkg.{home}") for home in _HOMES)
        value = next(getattr(home, name) for home in homes if name in home.__all__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names that are loaded and names that could be."""
    return sorted({*globals(), *__all__, *_HOMES})
