"""What ranking documents takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medkg.results.usage import Usage


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """A query with its candidates.

    Attributes:
        query: The query.
        documents: The candidates, at least one.
        first_stage_scores: The score of the search that found each document, larger is better; or None.
    """

    query: str
    documents: Sequence[str]
    first_stage_scores: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A scored document.

    Attributes:
        index: Index into the query's documents.
        score: The score that ranks; larger is better.
        relevance: The cross-encoder's logit; NaN where none has seen it, and ``degraded`` of the result says why.
    """

    index: int
    score: float
    relevance: float


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The documents of one query, best first.

    Attributes:
        documents: Best first.
        model: The model that answered.
        model_digest: Its digest.
        truncated_pairs: Pairs that were shortened.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
        degraded: Why it is not the answer that was asked for, where a :class:`medkg.FallbackConfig` stood in;
            None: it is. Documents in the order of their first-stage scores have these as ``score``, and no model.
    """

    documents: list[RankedDocument]
    model: str
    model_digest: str
    truncated_pairs: int
    usage: Usage
    request_id: str
    trace_id: str
    degraded: str | None = None


@dataclass(frozen=True, slots=True)
class RerankBatchResult:
    """One ranking per query.

    Attributes:
        rankings: ``rankings[i]`` belongs to query i; each is best first.
        model: The model that answered.
        model_digest: Its digest.
        truncated_pairs: Pairs that were shortened, over all queries.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
        degraded: Why it is not the answer that was asked for, where a :class:`medkg.FallbackConfig` stood in;
            None: it is. Documents in the order of their first-stage scores have these as ``score``, and no model.
    """

    rankings: list[list[RankedDocument]]
    model: str
    model_digest: str
    truncated_pairs: int
    usage: Usage
    request_id: str
    trace_id: str
    degraded: str | None = None
