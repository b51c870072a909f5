"""The clients that wait for their answers.

A client can be shared by threads, pickled (it travels as its configuration) and used in forked children, which make
connections of their own. Nothing is dialled before the first call. While a call waits, the GIL is released, and signals
are handled within 50 ms: Ctrl-C and Dagster's termination cancel the call.

Every call takes the keywords of :class:`medkg.call_context.CallOptions`: ``tenant``, ``timeout``, ``traceparent``,
``tracestate``, ``request_id``. Every call raises the exceptions of :mod:`medkg.errors`; GPU failures
(:class:`~medkg.errors.GpuNotAvailableError`) are never retried.

This is the only module that imports the extension ``medkg._core``; :mod:`medkg.aio` has the awaitable twins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import medkg._core as _core  # noqa: PLR0402 - `from medkg import _core` would be an import cycle through the package
from medkg.base import Client, configure
from medkg.call_context import resolve
from medkg.streaming import answers
from medkg.watching import StatusWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from datetime import datetime
    from typing import Literal

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self, Unpack

    from medkg.call_context import CallOptions
    from medkg.config import ClientConfig
    from medkg.filters import Filter
    from medkg.results import (
        CollectionInfo,
        CollectionStatistics,
        DeviceInfo,
        EmbeddingResult,
        FetchResult,
        GpuStatus,
        Hit,
        Lease,
        ModelInfo,
        RerankBatchResult,
        RerankQuery,
        RerankResult,
        SparseEmbeddingResult,
        TokenizerFile,
        UpsertResult,
    )

__all__ = ["EmbeddingClient", "GpuClient", "RerankingClient", "Services", "VectorClient", "connect"]

version: str = _core.__version__

native = _core
"""The extension, for :mod:`medkg.aio`."""


class EmbeddingClient(Client[_core.Embedding]):
    """Texts to vectors."""

    __slots__ = ()

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """Take a configuration, or fields of :class:`~medkg.config.ClientConfig` by name, or both.

        Raises:
            ConfigError: The configuration cannot be used; every problem is listed.
        """
        super().__init__(configure(config, fields), _core.Embedding)

    def embed(
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
        """Turn each text into a vector. Many texts are split into several requests and come back in order.

        Args:
            texts: At least one; each 1 byte to 1 MiB of UTF-8.
            model: A name from :meth:`models`; None means the server's default.
            dtype: Element type of the vectors; None means float32. See :class:`~medkg.results.EmbeddingResult` for what
                each becomes in numpy; ``as_float32()`` of the result gives float32 again.
            prompt_name: A name out of the model's ``prompts``, whose text is put before each text; None means the
                model's default prompt, if it has one.
            instruction: Put before each text as it is, at most 4 KiB, e.g. ``"query: "``; ``""`` turns the model's
                default prompt off. Not together with ``prompt_name``.
            dimensions: Keep only the first so many elements, scaled to unit length again where the model's vectors
                have it (Matryoshka embeddings); None means all.
            truncation: ``"right"`` (the default) keeps the first tokens of texts that are too long for the model and
                lists them in ``truncated``; ``"left"`` keeps the last ones (a prompt goes first); ``"refuse"`` raises
                instead, naming the text.
            progress: Called in this thread with (texts done, texts in all); what it raises cancels the call.
            **call: See :class:`medkg.call_context.CallOptions`.

        Returns:
            ``vectors`` with one row per text, and what belongs to them.

        Raises:
            EmbeddingValidationError: An argument is wrong; it is named, e.g. ``texts[3]``.
            ModelNotFoundError: No model of that name is loaded.
            GpuNotAvailableError: The server has no usable GPU. Do not retry.
        """
        how = (model, dtype, truncation, prompt_name, instruction, dimensions)
        return self._native.embed(resolve(**call), texts, how, progress)

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        batch_size: int | None = None,
        model: str | None = None,
        dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"] | None = None,
        prompt_name: str | None = None,
        instruction: str | None = None,
        dimensions: int | None = None,
        truncation: Literal["right", "left", "refuse"] | None = None,
        **call: Unpack[CallOptions],
    ) -> Generator[EmbeddingResult, None, None]:
        """Turn any number of texts into vectors, batch by batch and in order, in memory that does not grow with them.

        ``texts`` is pulled in this thread, ``max_concurrent_batches`` batches ahead of the results taken at most. What
        it raises is raised here and, as closing the generator does, cancels the call. Batches that a broken connection
        left unanswered are sent again. ``batch_size`` is the texts of one result, at most 4,096; None means
        ``max_batch_texts``; more than ``max_batch_bytes`` bytes make a smaller one. ``timeout`` bounds the wait for
        each result, not the whole stream. All else is as in :meth:`embed`.

        Yields:
            A result per batch, as :meth:`embed` returns it; ``truncated`` are rows of the batch. An error names a text
            by its place among all.
        """
        how = (model, dtype, truncation, prompt_name, instruction, dimensions)
        return answers(self._native.embed_stream(resolve(**call), texts, how, batch_size), texts)

    def embed_sparse(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        max_terms: int | None = None,
        truncation: Literal["right", "left", "refuse"] | None = None,
        progress: Callable[[int, int], object] | None = None,
        **call: Unpack[CallOptions],
    ) -> SparseEmbeddingResult:
        """Turn each text into a sparse vector over the model's vocabulary (SPLADE). Split and put together as `embed`.

        Args:
            texts: At least one; each 1 byte to 1 MiB of UTF-8.
            model: A name from :meth:`models` of kind ``"sparse"``; None means the server's first such model.
            max_terms: Keep only so many terms of each text, those with the largest weights; None means all above 0.
            truncation: As in :meth:`embed`.
            progress: As in :meth:`embed`.
            **call: See :class:`medkg.call_context.CallOptions`.

        Returns:
            Compressed sparse rows: ``indptr`` int64 ``(len(texts) + 1,)``, ``indices`` int32 ``(terms,)``, ``values``
            float32 ``(terms,)``, and what belongs to them.

        Raises:
            EmbeddingValidationError: An argument is wrong; it is named, e.g. ``texts[3]``.
            ModelNotFoundError: No sparse model of that name is there.
            GpuNotAvailableError: The server has no usable GPU. Do not retry.
        """
        return self._native.embed_sparse(resolve(**call), texts, (model, truncation, max_terms), progress)

    def models(self, **call: Unpack[CallOptions]) -> list[ModelInfo]:
        """The embedding models of the server, sorted by name; ``state`` says which of them answer."""
        return self._native.models(resolve(**call))

    def tokenizer(self, model: str | None = None, **call: Unpack[CallOptions]) -> TokenizerFile:
        """A model's tokenizer, to count tokens exactly as the server does; None means the default model."""
        return self._native.tokenizer(resolve(**call), model)


class RerankingClient(Client[_core.Reranking]):
    """Query-document pairs to relevance scores."""

    __slots__ = ()

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """As :class:`EmbeddingClient`."""
        super().__init__(configure(config, fields), _core.Reranking)

    def rerank(
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
        """Rank the documents of one query, best first.

        Args:
            query: The query.
            documents: 1 to 1,024 candidates.
            first_stage_scores: The score of the search that found each document; larger is better.
            fusion: ``"none"`` (the default) ranks by the cross-encoder alone; ``"standardized_sum"`` adds both scores
                after standardising each over the documents, and needs ``first_stage_scores``.
            fusion_weight: Weight of the cross-encoder in that sum; more than 0; None means 1.
            top_n: Return only the best so many; None means all.
            model: A name from :meth:`models`; None means the server's default.
            truncation: ``"right"`` (the default) shortens documents that are too long; ``"refuse"`` raises instead.
            instruction: What "relevant" means, at most 4 KiB, for a model that takes one (Qwen3-Reranker); others
                refuse it.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            RerankingValidationError: An argument is wrong; it is named, e.g. ``queries[0].documents[3].text``.
            ModelNotFoundError: No model of that name is loaded.
            GpuNotAvailableError: The server has no usable GPU. Do not retry.
        """
        how = (model, fusion, fusion_weight, top_n, truncation, instruction)
        return self._native.rerank(resolve(**call), query, documents, first_stage_scores, how)

    def rerank_batch(
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
        """Rank the documents of many queries; ``rankings[i]`` belongs to query i. See :meth:`rerank`."""
        how = (model, fusion, fusion_weight, top_n, truncation, instruction)
        return self._native.rerank_batch(resolve(**call), queries, how)

    def models(self, **call: Unpack[CallOptions]) -> list[ModelInfo]:
        """The reranking models of the server, sorted by name; ``state`` says which of them answer."""
        return self._native.models(resolve(**call))


class VectorClient(Client[_core.Vector]):
    """Named collections of vectors and exact search over them. Collections belong to the tenant of the call."""

    __slots__ = ()

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """As :class:`EmbeddingClient`."""
        super().__init__(configure(config, fields), _core.Vector)

    def create_collection(
        self,
        name: str,
        dimension: int,
        metric: Literal["cosine", "dot", "l2"] = "cosine",
        *,
        storage: Literal["f32", "f16", "bf16"] = "f32",
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
            exist_ok: Accept a collection of the same dimension, metric and storage as it is.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            AlreadyExistsError: It is there, and ``exist_ok`` is False or it differs.
        """
        return self._native.create_collection(resolve(**call), name, dimension, (metric, storage), exist_ok)

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
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            VectorValidationError: An argument is wrong; it is named, e.g. ``vectors[3]``.
            CollectionNotFoundError: The tenant has no collection of that name.
        """
        return self._native.upsert(resolve(**call), name, ids, vectors, payloads)

    def delete(self, name: str, ids: Sequence[str], **call: Unpack[CallOptions]) -> int:
        """Remove points by id; returns how many of the ids were there."""
        return self._native.delete(resolve(**call), name, ids)

    def search(
        self,
        name: str,
        queries: npt.NDArray[np.float32],
        k: int = 10,
        *,
        with_payload: bool = True,
        filter: Filter | None = None,  # noqa: A002 - what it is called everywhere
        score_threshold: float | None = None,
        **call: Unpack[CallOptions],
    ) -> list[list[Hit]]:
        """Find the exact k nearest points of each query, best first; equal scores are ordered by id.

        Args:
            name: The collection.
            queries: Shape ``(q, dimension)``, or ``(dimension,)`` for one query; float32, C-contiguous, finite.
            k: Points to return for each query, 1 to 10,000.
            with_payload: Return each point's payload.
            filter: Compare only points that match; see :mod:`medkg.filters`.
            score_threshold: Return only points with at least this score. Under ``"l2"`` a score is minus the
                distance, so -2.0 returns points at a distance of at most 2.
            **call: See :class:`medkg.call_context.CallOptions`.

        Returns:
            One list per query, also for a single one.
        """
        how = (k, with_payload, filter, score_threshold)
        return self._native.search(resolve(**call), name, queries, how)

    def fetch(
        self,
        name: str,
        ids: Sequence[str],
        *,
        with_vectors: bool = True,
        with_payload: bool = True,
        **call: Unpack[CallOptions],
    ) -> FetchResult:
        """Read points by id; ids that are not there are listed in ``missing``."""
        return self._native.fetch(resolve(**call), name, ids, with_vectors, with_payload)

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


class GpuClient(Client[_core.Gpu]):
    """What a server computes on, and memory set aside on it."""

    __slots__ = ()

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """As :class:`EmbeddingClient`."""
        super().__init__(configure(config, fields), _core.Gpu)

    def status(self, **call: Unpack[CallOptions]) -> GpuStatus:
        """The truth about the device; answers also while there is none."""
        return self._native.status(resolve(**call))

    def watch_status(self, **call: Unpack[CallOptions]) -> StatusWatch:
        """The status now, and again whenever it changes, until the server stops.

        ``timeout`` is for the first status; the watch has no end of its own. A connection that breaks raises.
        """
        return StatusWatch(self._native.watch_status(resolve(**call)))

    def devices(self, **call: Unpack[CallOptions]) -> list[DeviceInfo]:
        """The devices of the server's machine."""
        return self._native.devices(resolve(**call))

    def allocate(
        self,
        memory_bytes: int,
        device: str | None = None,
        ttl: float | None = None,
        owner: str = "",
        **call: Unpack[CallOptions],
    ) -> Lease:
        """Set device memory aside until the lease expires or is released.

        Args:
            memory_bytes: At least 1.
            device: ``"cuda:N"``; None means the device with most memory left.
            ttl: Seconds the lease holds, 1 to 86,400; None means 300.
            owner: Who asks, for the operator's eyes; at most 128 characters.
            **call: See :class:`medkg.call_context.CallOptions`.

        Raises:
            RateLimitedError: No device has as much left (``GPU_MEMORY_EXHAUSTED``).
            GpuNotAvailableError: There is no GPU.
        """
        return self._native.allocate(resolve(**call), memory_bytes, device, ttl, owner)

    def renew(self, lease_id: str, ttl: float | None = None, **call: Unpack[CallOptions]) -> datetime:
        """Let a lease hold for ``ttl`` seconds from now on (None: 300); returns when it ends then, aware, in UTC."""
        return self._native.renew(resolve(**call), lease_id, ttl)

    def release(self, lease_id: str, **call: Unpack[CallOptions]) -> int:
        """Give a lease back; returns the bytes that are free again."""
        return self._native.release(resolve(**call), lease_id)


class Services:
    """The clients of one configuration. Can be shared by threads, pickled and used in forked children."""

    __slots__ = ("config", "embedding", "gpu", "reranking", "vector")

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """As :class:`EmbeddingClient`."""
        self.config = configure(config, fields)
        self.embedding = EmbeddingClient(self.config)
        self.reranking = RerankingClient(self.config)
        self.vector = VectorClient(self.config)
        self.gpu = GpuClient(self.config)

    def close(self) -> None:
        """Let the connections go; further calls raise."""
        for client in (self.embedding, self.reranking, self.vector, self.gpu):
            client.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[ClientConfig]]:
        """Travel as the configuration."""
        return type(self), (self.config,)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.config!r})"


def connect(config: ClientConfig | None = None, /, **fields: Any) -> Services:
    """Make the clients of one configuration. Nothing is dialled until the first call.

    Args:
        config: The configuration; None means the defaults.
        **fields: Fields of :class:`~medkg.config.ClientConfig` that differ from it.

    Raises:
        ConfigError: The configuration cannot be used; every problem is listed.

    Example:
        >>> import medkg
        >>> with medkg.connect(address="http://127.0.0.1:7070", tenant="demo") as services:
        ...     services.embedding.config.tenant
        'demo'
    """
    return Services(config, **fields)
