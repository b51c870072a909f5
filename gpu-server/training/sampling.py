"""What a training step sees: queries drawn kind by kind, each with one relevant passage and several hard others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data import Document, QuerySet, passage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from first_stage import IntArray

START_MIX: Mapping[str, float] = {
    "claims-train": 0.25,
    "scifact-title": 0.30,
    "scifact-conclusion": 0.25,
    "pubmedqa-question": 0.10,
    "pubmedqa-conclusion": 0.10,
}
"""Shares of the kinds at the first step: mostly matching learnt from the structure of abstracts."""

END_MIX: Mapping[str, float] = {
    "claims-train": 0.70,
    "scifact-title": 0.0,
    "scifact-conclusion": 0.20,
    "pubmedqa-question": 0.0,
    "pubmedqa-conclusion": 0.10,
}
"""Shares at the last step: mostly claims, which is what the model is used on."""

NEGATIVES = 4


def random_share(progress: float) -> float:
    """Chance that a negative is a random document instead of one of the first stage's top.

    Most are random at first: against hard negatives alone the loss of a fresh head stays flat for long. Some stay
    random to the end, so that scores are low for passages off the subject.
    """
    return max(0.1, 0.7 - 3.0 * progress)


@dataclass(frozen=True)
class Candidates:
    """A query set, its documents and their first-stage order, int64 [queries, depth]."""

    queries: QuerySet
    documents: tuple[Document, ...]
    order: IntArray


@dataclass
class Sampler:
    """Draws groups of passages; :attr:`drawn` is its whole state, so a resumed run goes on where it stopped."""

    sets: Mapping[str, Candidates]
    seed: int
    drawn: dict[str, int] = field(default_factory=dict)
    _cycles: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def step(self, number: int, groups: int, progress: float) -> list[tuple[str, list[str]]]:
        """``groups`` pairs of a query and its passages, the relevant one first.

        ``progress`` in [0, 1] sets the mix of kinds; ``number`` seeds the draw.
        """
        rng = random.Random(f"{self.seed}:{number}")
        kinds = list(START_MIX)
        shares = [START_MIX[kind] + (END_MIX[kind] - START_MIX[kind]) * progress for kind in kinds]
        return [self._group(rng, kind, progress) for kind in rng.choices(kinds, shares, k=groups)]

    def _group(self, rng: random.Random, kind: str, progress: float) -> tuple[str, list[str]]:
        candidates = self.sets[kind]
        index = self._next(kind, len(candidates.queries.queries))
        query = candidates.queries.queries[index]
        hard = [int(row) for row in candidates.order[index] if int(row) not in query.relevant]
        rng.shuffle(hard)
        rows = [rng.choice(query.relevant)]
        while len(rows) < 1 + NEGATIVES:
            row = rng.randrange(len(candidates.documents)) if rng.random() < random_share(progress) else hard.pop()
            if row not in query.relevant and row not in rows:
                rows.append(row)
        return query.text, [passage(candidates.documents[row], query.form) for row in rows]

    def _next(self, kind: str, size: int) -> int:
        """Every query of a kind once before any comes again, in an order that the seed and the round decide."""
        drawn = self.drawn.get(kind, 0)
        self.drawn[kind] = drawn + 1
        cycle, offset = divmod(drawn, size)
        if (kind, cycle) not in self._cycles:
            order = list(range(size))
            random.Random(f"{self.seed}:{kind}:{cycle}").shuffle(order)
            self._cycles[(kind, cycle)] = order
        return self._cycles[(kind, cycle)][offset]
