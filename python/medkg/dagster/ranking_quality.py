"""How good a ranking is, by judged documents: nDCG, recall and reciprocal rank of one query.

Gains are graded as they stand in the judgements; a document without a judgement counts as not relevant. The means over
queries are what BEIR and trec_eval report.

Sources: nDCG: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002,
with the discount log2(rank + 1) from the first rank on, as trec_eval's ndcg_cut and BEIR (Thakur et al., NeurIPS 2021)
have it. Reciprocal rank: E. Voorhees, "The TREC-8 question answering track report", 1999. Recall: C. Manning,
P. Raghavan, H. Schütze, "Introduction to Information Retrieval", 2008, chapter 8.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def ndcg(ranking: Sequence[str], judged: Mapping[str, float], k: int) -> float:
    """Discounted gain of the first k documents over that of the best possible order: from 0 to 1.

    Args:
        ranking: Documents, best first, each once.
        judged: The gain of each judged document; 0 is not relevant.
        k: Ranks that count, from 1.
    """
    best = _discounted(sorted(judged.values(), reverse=True)[:k])
    return _discounted([judged.get(document, 0.0) for document in ranking[:k]]) / best if best else 0.0


def recall(ranking: Sequence[str], judged: Mapping[str, float], k: int) -> float:
    """Share of the relevant documents that are among the first k."""
    relevant = {document for document, gain in judged.items() if gain > 0}
    return len(relevant.intersection(ranking[:k])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], judged: Mapping[str, float], k: int) -> float:
    """1 over the rank of the first relevant document, 0 if there is none among the first k."""
    for rank, document in enumerate(ranking[:k], start=1):
        if judged.get(document, 0.0) > 0:
            return 1 / rank
    return 0.0


def _discounted(gains: Sequence[float]) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
