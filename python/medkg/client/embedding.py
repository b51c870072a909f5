"""Texts to vectors, waiting for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medkg.base import Client
from medkg.call_context import resolve
from medkg.client.native import native
from medkg.streaming import answers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from typing import Literal

    from typing_extensions import Unpack

    from medkg.base import Half
    from medkg.call_context import CallOptions
    from medkg.results import CacheStats, EmbeddingResult, ModelInfo, SparseEmbeddingResult, TokenizerFile


class EmbeddingClient(Client[native.Embedding]):
    """Texts to vectors."""

    __slots__ = ()
    _half: ClassVar[Half] = native.Embedding

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

    def cache_stats(self) -> CacheStats | None:
        """What the cache did and holds; None without one."""
        return self._native.cache_stats()

    def forget_cached(self, digest: str | None = None, **call: Unpack[CallOptions]) -> int:
        """Forget what the tenant has in the cache, here and in Redis; returns how many entries Redis had.

        Other processes keep what they have in memory until its ``ttl`` is over.

        Args:
            digest: Of one model, as :attr:`medkg.results.ModelInfo.digest`; None means all models.
            **call: See :class:`medkg.call_context.CallOptions`; ``tenant`` says whose entries.

        Raises:
            ServiceError: Redis cannot be asked; this process has forgotten them then.
        """
        return self._native.forget(resolve(**call), digest)
