"""The clients that wait for their answers.

A client can be shared by threads, pickled (it travels as its configuration) and used in forked children, which make
connections of their own. Nothing is dialled before the first call. While a call waits, the GIL is released, and signals
are handled within 50 ms: Ctrl-C and Dagster's termination cancel the call.

Every call takes the keywords of :class:`medkg.call_context.CallOptions`: ``tenant``, ``timeout``, ``traceparent``,
``tracestate``, ``request_id``. Every call raises the exceptions of :mod:`medkg.errors`; GPU failures
(:class:`~medkg.errors.GpuNotAvailableError`) are never retried.

:mod:`medkg.aio` has the awaitable twins.
"""

from __future__ import annotations

from medkg.client.embedding import EmbeddingClient
from medkg.client.gpu import GpuClient
from medkg.client.qwen3 import GPUEmbeddingClient, Qwen3GRPCClient
from medkg.client.registry import Registration, ServiceRegistry
from medkg.client.reranking import RerankingClient
from medkg.client.services import Services, connect
from medkg.client.vector import VectorClient

__all__ = [
    "EmbeddingClient",
    "GPUEmbeddingClient",
    "GpuClient",
    "Qwen3GRPCClient",
    "Registration",
    "RerankingClient",
    "ServiceRegistry",
    "Services",
    "VectorClient",
    "connect",
]
