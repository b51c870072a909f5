"""The vectors suite: exact search over 200,000 x 384 unit vectors, durable upserts, filters, bf16 rows, sparse search.

gpu-server is called through medkg's client over loopback, so its times hold the wire, the payloads and numpy; faiss
searches in its own process. Both have all cores, and their ids are compared first.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

import medkg
from bench import sparse
from bench.measure import CandidateError, Row, interleave, missing, rate, ratio, row
from bench.server import TENANT, TIMEOUT
from bench.suite import QUICK, Suite
from medkg import filters
from medkg.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from bench.peer import Peer

    Vectors = npt.NDArray[np.float32]

POINTS, DIMENSION, K = 200_000, 384, 10
SINGLE, BATCHED, BATCH = 64, 256, 64
"""Queries of a round one at a time, queries of a round in batches, and the size of a batch."""
CALL = 16_384
"""Points of one upsert: 24 MiB of vectors."""
GROUPS = 100
"""The filter's field has so many values: it lets one point in a hundred through."""
FILTERED = 16
"""Queries of a round of the filter."""
F32, BF16 = "f32", "bf16"
PEER = "faiss-cpu IndexFlatIP"
NAMES = {
    1: "search, one query at a time",
    BATCH: f"search, {BATCH} queries at a time",
}
FILTER = "filtered search, one point in a hundred matches"
AFTERWARDS = "the same server, filtered afterwards"
UPSERT = "upsert into a new collection, on disk when it is acknowledged"
HALF = "device memory of bf16 rows"
FAST = "search of bf16 rows, one query at a time"


def measure(
    binary: Path, *, rounds: int, folder: Path, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """All rows of the suite, and the versions of the peers.

    Args:
        binary: gpu-server.
        rounds: Of each comparison.
        folder: Gets the peer's log and the vectors.
        say: Progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        suite = Suite(binary, folder, folder, folder, QUICK, say, stack)
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="medkg-bench-", dir=folder))
        server = LocalServer(binary, services=("vector",), data_dir=data)
        try:
            stack.enter_context(server)
        except RuntimeError as error:
            return [missing("everything", f"gpu-server did not start: {error}")], {}
        services = stack.enter_context(medkg.connect(address=server.address, tenant=TENANT, timeout=TIMEOUT))
        random = np.random.default_rng(5)
        stored, queries = unit(random, POINTS), unit(random, BATCHED)
        bars = {UPSERT: ("vectors/s", 100_000.0)}
        suite.section("upsert", bars, lambda: upserts(services.vector, stored, rounds, say))
        fill(services.vector, "f32", stored, F32)
        bars = dict.fromkeys(NAMES.values(), ("ratio", 1.0))
        suite.section("search", bars, lambda: searches(suite, services.vector, stored, queries, rounds))
        suite.section("filter", {FILTER: ("ratio", 3.0)}, lambda: filtered(services.vector, queries, rounds, say))
        bars = {HALF: ("times", 0.5), FAST: ("ratio", 1.5)}
        suite.section("bf16", bars, lambda: halves(services.vector, stored, queries, rounds, say))
        bars = dict.fromkeys(sparse.NAMES.values(), ("ratio", 1.0))
        suite.section("sparse", bars, lambda: sparse.searches(services.vector, rounds, say))
    return suite.rows, suite.versions


def unit(random: np.random.Generator, count: int) -> Vectors:
    """Random directions."""
    vectors = random.standard_normal((count, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(vectors: medkg.VectorClient, name: str, stored: Vectors, storage: str) -> None:
    """A collection of all points, with the field that the filter asks for."""
    vectors.create_collection(name, DIMENSION, "dot", storage=storage)
    for start in range(0, len(stored), CALL):
        rows = stored[start : start + CALL]
        numbers = range(start, start + len(rows))
        vectors.upsert(name, [f"{n:06}" for n in numbers], rows, [{"group": n % GROUPS} for n in numbers])


def upserts(vectors: medkg.VectorClient, stored: Vectors, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Vectors per second, each round into a collection of its own, without payloads."""
    ids = [f"{number:06}" for number in range(len(stored))]
    rates = []
    for number in range(rounds):
        vectors.create_collection("new", DIMENSION, "dot")
        started = time.perf_counter()
        for start in range(0, len(stored), CALL):
            vectors.upsert("new", ids[start : start + CALL], stored[start : start + CALL])
        rates.append(len(stored) / (time.perf_counter() - started))
        vectors.drop_collection("new")
        say(f"  round {number + 1}/{rounds} {rates[-1]:,.0f} vectors/s")
    return [row(UPSERT, rates, "vectors/s", bar=100_000.0, note=f"{CALL} points a call, one caller")]


def seconds(vectors: medkg.VectorClient, name: str, queries: Vectors, batch: int) -> float:
    """Seconds to search all queries, `batch` at a time."""
    started = time.perf_counter()
    for start in range(0, len(queries), batch):
        vectors.search(name, queries[start : start + batch], K, with_payload=False)
    return time.perf_counter() - started


def searches(suite: Suite, vectors: medkg.VectorClient, stored: Vectors, queries: Vectors, rounds: int) -> list[Row]:
    """Queries per second over those of faiss, one at a time and in batches.

    Raises:
        CandidateError: faiss is not there, or finds something else.
    """
    file, asked = suite.folder / "vectors.npy", suite.folder / "queries.npy"
    np.save(file, stored)
    peer = suite.peer(PEER, "faiss_index", "MEDKG_PEERS_PYTHON", vectors=str(file))
    agree(vectors, peer, queries[:BATCH])
    rows = []
    for batch, count in ((1, SINGLE), (BATCH, BATCHED)):
        np.save(asked, queries[:count])

        def ours(batch: int = batch, count: int = count) -> float:
            return count / seconds(vectors, "f32", queries[:count], batch)

        def theirs(batch: int = batch, count: int = count) -> float:
            return count / peer.ask("seconds", queries=str(asked), batch=batch, k=K)

        rates = interleave({"gpu-server": ours, PEER: theirs}, repetitions=rounds, say=suite.say)
        rows += [
            ratio(NAMES[batch], rates["gpu-server"], rates[PEER], peer=PEER, bar=1.0),
            rate(f"gpu-server: {NAMES[batch]}", rates["gpu-server"], "queries/s"),
            rate(f"{PEER}: {NAMES[batch]}", rates[PEER], "queries/s"),
        ]
    return rows


def agree(vectors: medkg.VectorClient, peer: Peer, queries: Vectors) -> None:
    """Checks that both find the same points."""
    found = [[int(hit.id) for hit in hits] for hits in vectors.search("f32", queries, K, with_payload=False)]
    if found != peer.ask("ids", queries=queries.tolist(), k=K):
        raise CandidateError(f"gpu-server and {PEER} do not find the same points: not the same work")


def filtered(vectors: medkg.VectorClient, queries: Vectors, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """A filter in the search, over asking for more and more points until enough of them match."""
    wanted = filters.Equals("group", 7)

    def before() -> float:
        started = time.perf_counter()
        for query in queries[:FILTERED]:
            vectors.search("f32", query, K, filter=wanted)
        return FILTERED / (time.perf_counter() - started)

    def after() -> float:
        started = time.perf_counter()
        for query in queries[:FILTERED]:
            k, matching = K * GROUPS, 0
            while matching < K:
                (hits,) = vectors.search("f32", query, k)
                matching = sum(hit.payload["group"] == 7 for hit in hits if hit.payload)
                k = min(2 * k, 10_000)
        return FILTERED / (time.perf_counter() - started)

    rates = interleave({"filter": before, AFTERWARDS: after}, repetitions=rounds, say=say)
    return [ratio(FILTER, rates["filter"], rates[AFTERWARDS], peer=AFTERWARDS, bar=3.0)]


def halves(
    vectors: medkg.VectorClient, stored: Vectors, queries: Vectors, rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """bf16 rows against f32 rows of the same server: bytes, and one query at a time."""
    fill(vectors, "bf16", stored, BF16)
    bytes_of = {name: vectors.statistics(name).device_bytes for name in (F32, BF16)}
    runs = {name: lambda name=name: SINGLE / seconds(vectors, name, queries[:SINGLE], 1) for name in (F32, BF16)}
    rates = interleave(runs, repetitions=rounds, say=say)
    return [
        row(HALF, [bytes_of[BF16] / bytes_of[F32]], "times", peer="f32 rows", bar=0.5),
        ratio(FAST, rates[BF16], rates[F32], peer="f32 rows", bar=1.5),
    ]
