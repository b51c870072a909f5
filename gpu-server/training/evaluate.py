"""Held-out figures: nDCG@10 and MRR@10 of the first stage, of the cross-encoder and of both fused.

A query's candidates are the first stage's top 30. Relevant abstracts that the first stage left out of them still
count in the ideal ranking, so no re-ranking can reach 1 when one is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from first_stage import FloatArray, IntArray

if TYPE_CHECKING:
    from data import Document, Query

Floats = npt.NDArray[np.float64]
Scorer = Callable[[Sequence[tuple[str, str]]], FloatArray]
"""Query-passage pairs to raw logits, float32 [pairs]."""

DEPTH = 30
CUT = 10
STD_FLOOR = 1e-6
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
BOOTSTRAP_ROUNDS = 10_000


@dataclass(frozen=True)
class Figures:
    """Means over the queries of a split."""

    ndcg_at_10: float
    mrr_at_10: float


@dataclass(frozen=True)
class Gain:
    """Difference in mean nDCG@10 from the first stage, with a paired bootstrap interval over queries."""

    mean: float
    low_95: float
    high_95: float


def standardize(scores: npt.ArrayLike) -> Floats:
    """Zero mean and unit population deviation over one candidate list, float64 [n]; deviation at least 1e-6."""
    values = np.asarray(scores, dtype=np.float64)
    spread: Floats = (values - values.mean()) / max(float(values.std()), STD_FLOOR)
    return spread


def standardized_sum(first_stage: npt.ArrayLike, cross_encoder: npt.ArrayLike, weight: float = 1.0) -> Floats:
    """Both score lists standardised over the same candidates, the first stage's times ``weight``, added."""
    fused: Floats = weight * standardize(first_stage) + standardize(cross_encoder)
    return fused


def ndcg(ranked: Sequence[int], relevant: set[int], cut: int = CUT) -> float:
    """Binary nDCG at ``cut`` of document rows, best first."""
    gained = sum(1.0 / math.log2(place + 2) for place, row in enumerate(ranked[:cut]) if row in relevant)
    ideal = sum(1.0 / math.log2(place + 2) for place in range(min(cut, len(relevant))))
    return gained / ideal


def reciprocal_rank(ranked: Sequence[int], relevant: set[int], cut: int = CUT) -> float:
    """1 / place of the first relevant row within ``cut``, else 0."""
    return next((1.0 / (place + 1) for place, row in enumerate(ranked[:cut]) if row in relevant), 0.0)


@dataclass(frozen=True)
class ScoredSplit:
    """Candidates of one split with both scores: rows, first_stage and cross_encoder are [queries, DEPTH]."""

    queries: tuple[Query, ...]
    rows: IntArray
    first_stage: FloatArray
    cross_encoder: FloatArray

    def per_query(self, scores: Callable[[int], npt.ArrayLike]) -> tuple[Floats, Floats]:
        """nDCG@10 and MRR@10 of every query, each float64 [queries], ranking by ``scores(query number)``."""
        gains: list[float] = []
        ranks: list[float] = []
        for number, query in enumerate(self.queries):
            order = np.argsort(-np.asarray(scores(number), dtype=np.float64), kind="stable")
            ranked = [int(row) for row in self.rows[number][order]]
            gains.append(ndcg(ranked, set(query.relevant)))
            ranks.append(reciprocal_rank(ranked, set(query.relevant)))
        return np.array(gains), np.array(ranks)

    def fused(self, weight: float = 1.0) -> tuple[Floats, Floats]:
        """:meth:`per_query` of the standardised sum."""
        return self.per_query(lambda n: standardized_sum(self.first_stage[n], self.cross_encoder[n], weight))


def score_split(
    queries: Sequence[Query], documents: Sequence[Document], rows: IntArray, first_stage: FloatArray, scorer: Scorer
) -> ScoredSplit:
    """Score every candidate of every query with the cross-encoder."""
    pairs = [(q.text, documents[int(row)].text) for q, line in zip(queries, rows, strict=True) for row in line]
    return ScoredSplit(tuple(queries), rows, first_stage, scorer(pairs).reshape(rows.shape))


def gain(over: Floats, base: Floats, seed: int = 0) -> Gain:
    """Mean of ``over - base`` and its 95 % interval from resampling queries with replacement."""
    difference = over - base
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(difference), size=(BOOTSTRAP_ROUNDS, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return Gain(round(float(difference.mean()), 4), round(float(low), 4), round(float(high), 4))


def summarise(split: ScoredSplit) -> dict[str, object]:
    """The figures of one split as plain JSON values."""
    systems = {
        "first_stage": split.per_query(lambda n: split.first_stage[n]),
        "cross_encoder": split.per_query(lambda n: split.cross_encoder[n]),
        "standardized_sum": split.fused(),
    }
    base = systems["first_stage"][0]
    report: dict[str, object] = {
        "queries": len(split.queries),
        "candidates_per_query": int(split.rows.shape[1]),
        "recall_at_30_of_first_stage": round(_recall(split), 4),
    }
    for name, (gains, ranks) in systems.items():
        report[name] = asdict(Figures(round(float(gains.mean()), 4), round(float(ranks.mean()), 4)))
    for name in ("cross_encoder", "standardized_sum"):
        report[f"{name}_gain_in_ndcg_at_10"] = asdict(gain(systems[name][0], base))
    return report


def weight_curve(split: ScoredSplit) -> dict[str, float]:
    """Mean nDCG@10 of the fusion for every weight of the first stage tried; used on dev only."""
    return {f"{weight:g}": round(float(split.fused(weight)[0].mean()), 4) for weight in WEIGHTS}


def _recall(split: ScoredSplit) -> float:
    found = [len(set(q.relevant) & {int(r) for r in rows}) for q, rows in zip(split.queries, split.rows, strict=True)]
    return float(np.mean([count / len(q.relevant) for count, q in zip(found, split.queries, strict=True)]))
