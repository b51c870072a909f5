"""A gpu-server killed while it writes: what it acknowledged is there, and a call that it did not is whole or absent.

Every writer has ids of its own, so that at most one call of each is unanswered when the process dies, and what the file
may hold is known exactly: the state before that call, or the state after it. The seed fixes what is written and when
the kill is due, not how the threads interleave; a failure prints it, and MEDKG_CRASH_SEED sets it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .test_vectors import ONLY_VECTOR, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

DIMENSION = 16
TERMS = 100
WRITERS = 4
IDS_OF_A_WRITER = 60
STATE_SECONDS = 60.0
COLLECTION = "killed"


class Writer:
    """Writes to its own ids until the server dies, and knows what they may hold then."""

    def __init__(self, number: int, seed: int) -> None:
        self.ids = [f"w{number}-{i:03d}" for i in range(IDS_OF_A_WRITER)]
        self.random = random.Random(f"{seed} {number}")
        self.version = 0
        self.tally = [0, 0, 0]
        """Calls that were acknowledged; of those that were not, which were done, and which were not."""
        self.kept: dict[str, int] = {}
        """The version of each id that was acknowledged."""
        self.after: dict[str, int] | None = None
        """The same, should the call that got no answer have been done."""

    def write(self, vectors: Vectors, acknowledged: threading.Semaphore) -> grpc.StatusCode:
        """Until a call fails; how it failed."""
        try:
            while True:
                self._one_call(vectors)
                acknowledged.release()
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code

    def _one_call(self, vectors: Vectors) -> None:
        self.version += 1
        chosen = self.random.sample(self.ids, self.random.randint(1, IDS_OF_A_WRITER))
        there = sum(name in self.kept for name in chosen)
        if self.random.random() < 0.3:
            self.after = {name: version for name, version in self.kept.items() if name not in set(chosen)}
            request = vectors.w.DeleteVectorsRequest(collection=COLLECTION, ids=chosen)
            assert vectors.call("DeleteVectors", request).deleted == there
        else:
            self.after = {**self.kept, **dict.fromkeys(chosen, self.version)}
            rows = np.full((len(chosen), DIMENSION), self.version, dtype=np.float32)
            payloads = [f'{{"version": {self.version}}}'] * len(chosen)
            request = vectors.w.UpsertVectorsRequest(
                collection=COLLECTION,
                ids=chosen,
                vectors=vectors.tensor(rows),
                payloads=payloads,
                sparse=sparse_rows(vectors, [self.version] * len(chosen)),
            )
            answer = vectors.call("UpsertVectors", request)
            assert (answer.inserted, answer.replaced) == (len(chosen) - there, there)
        self.kept, self.after = self.after, None
        self.tally[0] += 1

    def check(self, vectors: Vectors, told: str) -> None:
        """What is there is one of the two states, payload and vector of one version; it goes on from there."""
        request = vectors.w.FetchVectorsRequest(
            collection=COLLECTION, ids=self.ids, with_vectors=True, with_payload=True, with_sparse=True
        )
        found = vectors.call("FetchVectors", request)
        rows = np.frombuffer(found.vectors.data, dtype="<f4").reshape(-1, DIMENSION)
        state = {name: int(row[0]) for name, row in zip(found.ids, rows, strict=True)}
        for name, row, payload in zip(found.ids, rows, found.payloads, strict=True):
            assert (row == row[0]).all(), f"{told}: the vector of {name} is torn"
            assert payload == f'{{"version": {int(row[0])}}}', f"{told}: vector and payload of {name} are of two calls"
        assert found.sparse == sparse_rows(vectors, list(state.values())), f"{told}: sparse vectors are of other calls"
        allowed = [self.kept] if self.after is None else [self.kept, self.after]
        assert state in allowed, f"{told}: found {state}, allowed {allowed}"
        if self.after is not None:
            self.tally[1 if state == self.after else 2] += 1
        self.kept, self.after = state, None


def sparse_rows(vectors: Vectors, versions: list[int]) -> Any:
    """One term for each version: its weight."""
    return vectors.w.SparseVectors(
        offsets=range(len(versions) + 1),
        indices=[version % TERMS for version in versions],
        weights=np.array(versions, dtype="<f4").tobytes(),
    )


def once_open(vectors: Vectors) -> int:
    """The points of the collection, as soon as the server has opened it."""
    deadline = time.monotonic() + STATE_SECONDS
    while (points := points_if_open(vectors)) is None:
        assert time.monotonic() < deadline, "the collections are not opened"
    return points


def points_if_open(vectors: Vectors) -> int | None:
    """The points of the collection; None while the server opens it."""
    try:
        return vectors.points(COLLECTION)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None


LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=LONG)])
def test_what_was_acknowledged_outlives_a_kill_and_what_was_not_is_whole_or_absent(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path, kills: int
) -> None:
    seed = int(os.environ.get("MEDKG_CRASH_SEED") or random.SystemRandom().randrange(2**32))
    due = random.Random(seed)
    writers = [Writer(number, seed) for number in range(WRITERS)]
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    collection = vectors.w.Collection(
        name=COLLECTION, dimension=DIMENSION, metric=vectors.w.METRIC_L2, sparse_dimension=TERMS
    )
    vectors.call("CreateCollection", vectors.w.CreateCollectionRequest(collection=collection))
    for kill in range(kills):
        told = f"MEDKG_CRASH_SEED={seed}, kill {kill}"
        acknowledged = threading.Semaphore(0)
        with ThreadPoolExecutor(WRITERS) as threads:
            ends = [threads.submit(writer.write, vectors, acknowledged) for writer in writers]
            for _ in range(due.randint(1, 12)):
                assert acknowledged.acquire(timeout=STATE_SECONDS), f"{told}: no write is acknowledged"
            # Anywhere inside a call, not only after one: nothing is waited for here but the moment.
            threading.Event().wait(due.uniform(0, 0.02))
            server.kill()
        for end in ends:
            assert end.result() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, told
        vectors.channel.close()
        server.start()
        vectors = Vectors(wire, open_channel(server))
        points = once_open(vectors)
        for writer in writers:
            writer.check(vectors, told)
        # The view that search uses, and the file that fetch reads, have the same points.
        names = sorted(name for writer in writers for name in writer.kept)
        assert points == len(names), told
        [found] = vectors.search(COLLECTION, np.zeros((1, DIMENSION)), 1000)
        assert sorted(name for name, _, _ in found) == names, told
    server.stop()
    calls, done, undone = (sum(parts) for parts in zip(*(w.tally for w in writers), strict=True))
    print(f"{kills} kills; {calls} calls acknowledged; of those without an answer {done} were done, {undone} were not")
    assert done + undone > 0, "no call was interrupted"
