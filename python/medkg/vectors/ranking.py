"""Scores and the nearest points, computed with numpy in float64 and given as float32.

Ordering by id where scores are equal is part of the contract, so who is among the k nearest is decided here and not by
a home's own search, which breaks ties as it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["Nearest", "scores"]

Ranked = tuple[float, str, str]
"""Score, id, payload as JSON text."""


def scores(query: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], metric: str) -> npt.NDArray[np.float32]:
    """The score of each row of ``vectors``; larger is nearer."""
    wanted, rows = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        distances: npt.NDArray[np.float64] = np.linalg.norm(rows - wanted, axis=1)
        return (-distances).astype(np.float32)
    # Row by row instead of a matrix product, so that equal rows have equal scores wherever they stand.
    found: npt.NDArray[np.float64] = np.einsum("ij,j->i", rows, wanted)
    if metric == "cosine":
        found = np.clip(found / (np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted)), -1.0, 1.0)
    return found.astype(np.float32)


class Nearest:
    """The k nearest of the points that are added, batch by batch."""

    def __init__(self, k: int, threshold: float | None) -> None:
        """Keep k points, none of them below the threshold."""
        self._k = k
        self._threshold = None if threshold is None else np.float32(threshold)
        self._kept: list[Ranked] = []

    def add(self, ids: Sequence[str], found: npt.NDArray[np.float32], payloads: Sequence[str]) -> None:
        """Consider more points."""
        take = np.ones(len(ids), dtype=bool) if self._threshold is None else found >= self._threshold
        if len(ids) > self._k:
            # Equal ones stay: which of them is in is decided by id.
            take &= found >= np.partition(found, len(ids) - self._k)[len(ids) - self._k]
        places: list[int] = np.flatnonzero(take).tolist()
        self._kept += [(float(found[i]), ids[i], payloads[i]) for i in places]
        self._kept.sort(key=lambda point: (-point[0], point[1]))
        del self._kept[self._k :]

    def best(self) -> list[Ranked]:
        """Best first."""
        return self._kept
