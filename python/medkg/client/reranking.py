"""Query-document pairs to scores, waiting for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from medkg.base import Client
from medkg.call_context import resolve
from medkg.client.native import native

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from typing_extensions import Unpack

    from medkg.base import Half
    from medkg.call_context import CallOptions
    from medkg.results import ModelInfo, RerankBatchResult, RerankQuery, RerankResult


class RerankingClient(Client[native.Reranking]):
    """Query-document pairs to relevance scores."""

    __slots__ = ()
    _half: ClassVar[Half] = native.Reranking

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
