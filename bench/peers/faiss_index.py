"""faiss-cpu's IndexFlatIP, in its own process: exact search by inner product, no wire."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from answering import serve, versions

if TYPE_CHECKING:
    from collections.abc import Callable


def load(threads: int, vectors: str) -> tuple[dict[str, str], dict[str, Callable[..., Any]]]:
    """Builds the index from a file of unit vectors."""
    faiss.omp_set_num_threads(threads)
    stored = np.load(vectors)
    index = faiss.IndexFlatIP(stored.shape[1])
    index.add(stored)

    def ids(queries: list[list[float]], k: int) -> list[list[int]]:
        """Rows of the nearest vectors, for comparing the work."""
        return index.search(np.asarray(queries, dtype=np.float32), k)[1].tolist()

    def seconds(queries: str, batch: int, k: int) -> float:
        """Seconds to search all queries of a file, `batch` at a time."""
        asked = np.load(queries)
        started = time.perf_counter()
        for start in range(0, len(asked), batch):
            index.search(asked[start : start + batch], k)
        return time.perf_counter() - started

    return versions("faiss-cpu", "numpy"), {"ids": ids, "seconds": seconds}


serve(load)
