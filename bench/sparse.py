"""Sparse search against scipy: 200,000 vectors of some 150 terms out of 30,522, as SPLADE makes them of abstracts.

gpu-server is called through medkg's client over loopback; scipy multiplies in this process, the sparse query by the
transposed matrix in CSR, which reads the entries of the terms of the query only (CSR x dense query reads all). scipy
has one thread; gpu-server shares a batch out among its own. Their scores are compared first.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

import medkg
from bench.measure import CandidateError, Row, interleave, rate, ratio

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS, VOCABULARY, K, CALL = 200_000, 30_522, 10, 8_192
TERMS, QUERY_TERMS = 150, 40
QUERIES, BATCH = 64, 64
COLLECTION = "sparse"
PEER = "scipy, sparse query x transposed CSR"
NAMES = {1: "sparse search, one query at a time", BATCH: f"sparse search, {BATCH} queries at a time"}


def rows(random: np.random.Generator, count: int, terms: int) -> medkg.SparseVectors:
    """Rows whose terms are as unevenly spread as words are (Zipf), with weights above 0."""
    chance = 1 / (np.arange(VOCABULARY) + 50.0) ** 0.9
    drawn = np.sort(random.choice(VOCABULARY, size=(count, terms), p=chance / chance.sum()).astype(np.int32), axis=1)
    kept = np.ones(drawn.shape, bool)
    kept[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(kept.sum(axis=1), out=indptr[1:])
    weights = random.gamma(2, 0.4, size=int(indptr[-1])).astype(np.float32) + np.float32(0.01)
    return medkg.SparseVectors(indptr, drawn[kept], weights)


def part(of: medkg.SparseVectors, start: int, end: int) -> medkg.SparseVectors:
    """Some of the rows."""
    first, last = of.indptr[start], of.indptr[end]
    return medkg.SparseVectors(of.indptr[start : end + 1] - first, of.indices[first:last], of.values[first:last])


def searches(vectors: medkg.VectorClient, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Queries per second over those of scipy, one at a time and in a batch.

    Raises:
        CandidateError: scipy is not there, or finds other scores.
    """
    try:
        from scipy import sparse  # noqa: PLC0415 - a peer
    except ModuleNotFoundError as error:
        raise CandidateError(f"scipy is not installed: {error}") from error
    random = np.random.default_rng(6)
    stored, asked = rows(random, POINTS, TERMS), rows(random, QUERIES, QUERY_TERMS)
    vectors.create_collection(COLLECTION, 1, "dot", sparse_dimension=VOCABULARY)
    for start in range(0, POINTS, CALL):
        end = min(start + CALL, POINTS)
        ids = [f"{number:06}" for number in range(start, end)]
        vectors.upsert(COLLECTION, ids, np.ones((end - start, 1), np.float32), sparse=part(stored, start, end))
    matrix: Any = sparse.csr_array((stored.values, stored.indices, stored.indptr), shape=(POINTS, VOCABULARY)).T.tocsr()
    queries: Any = sparse.csr_array((asked.values, asked.indices, asked.indptr), shape=(QUERIES, VOCABULARY))
    agree(vectors, asked, queries, matrix)
    found = []
    for batch, name in NAMES.items():

        def ours(batch: int = batch) -> float:
            started = time.perf_counter()
            for start in range(0, QUERIES, batch):
                vectors.search(COLLECTION, k=K, sparse=part(asked, start, start + batch), with_payload=False)
            return QUERIES / (time.perf_counter() - started)

        def theirs(batch: int = batch) -> float:
            started = time.perf_counter()
            for start in range(0, QUERIES, batch):
                best(queries[start : start + batch] @ matrix)
            return QUERIES / (time.perf_counter() - started)

        rates = interleave({"gpu-server": ours, PEER: theirs}, repetitions=rounds, say=say)
        found += [
            ratio(name, rates["gpu-server"], rates[PEER], peer=PEER, bar=1.0),
            rate(f"gpu-server: {name}", rates["gpu-server"], "queries/s"),
            rate(f"{PEER}: {name}", rates[PEER], "queries/s"),
        ]
    vectors.drop_collection(COLLECTION)
    return found


def best(scores: Any) -> list[Any]:
    """The K largest of each row of a product, largest first."""
    found = []
    for start, end in zip(scores.indptr[:-1], scores.indptr[1:], strict=True):
        row = scores.data[start:end]
        found.append(np.sort(row[np.argpartition(-row, K)[:K]])[::-1])
    return found


def agree(vectors: medkg.VectorClient, asked: medkg.SparseVectors, queries: Any, matrix: Any) -> None:
    """Checks that both find the same scores."""
    ours = [[hit.score for hit in hits] for hits in vectors.search(COLLECTION, k=K, sparse=asked, with_payload=False)]
    if not np.allclose(ours, best(queries @ matrix), rtol=1e-4):
        raise CandidateError(f"gpu-server and {PEER} do not find the same scores: not the same work")
