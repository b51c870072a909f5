"""Collections: exact, durable, and each tenant's own."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

DIMENSION = 48
ONLY_VECTOR: dict[str, Any] = {"services": ("gpu", "vector"), "embedding_models": {}, "reranking_models": {}}


class Vectors:
    """The raw service with numpy in front."""

    def __init__(self, wire: Any, channel: grpc.Channel, tenant: str = "raw") -> None:
        self.w, self.types, self.channel = wire.vector, wire.types, channel
        self.stub = self.w.VectorServiceStub(channel)
        self.metadata = [("x-tenant-id", tenant)]

    def tensor(self, rows: np.ndarray) -> Any:
        rows = np.ascontiguousarray(rows, dtype="<f4")
        return self.types.Tensor(data=rows.tobytes(), dtype=self.types.DATA_TYPE_F32, shape=rows.shape)

    def call(self, name: str, request: Any) -> Any:
        return getattr(self.stub, name)(request, metadata=self.metadata, timeout=120)

    def create(self, name: str, metric: str = "COSINE", dimension: int = DIMENSION) -> bool:
        collection = self.w.Collection(name=name, dimension=dimension, metric=getattr(self.w, f"METRIC_{metric}"))
        return bool(self.call("CreateCollection", self.w.CreateCollectionRequest(collection=collection)).created)

    def upsert(self, name: str, ids: list[str], rows: np.ndarray, payloads: list[str] | None = None) -> tuple[int, int]:
        request = self.w.UpsertVectorsRequest(
            collection=name, ids=ids, vectors=self.tensor(rows), payloads=payloads or []
        )
        answer = self.call("UpsertVectors", request)
        return answer.inserted, answer.replaced

    def search(self, name: str, queries: np.ndarray, k: int) -> list[list[tuple[str, float, str]]]:
        request = self.w.SearchVectorsRequest(collection=name, queries=self.tensor(queries), k=k, with_payload=True)
        hits = self.call("SearchVectors", request).hits
        return [[(point.id, point.score, point.payload) for point in hit.points] for hit in hits]

    def points(self, name: str) -> int:
        return int(self.call("GetCollectionStatistics", self.w.GetCollectionStatisticsRequest(collection=name)).points)


@pytest.fixture
def vectors(wire: Any, channel: grpc.Channel) -> Vectors:
    return Vectors(wire, channel)


def exact(metric: str, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    q, r = queries.astype(np.float64), rows.astype(np.float64)
    match metric:
        case "DOT":
            return q @ r.T
        case "COSINE":
            return (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (r / np.linalg.norm(r, axis=1, keepdims=True)).T
        case _:
            return -np.linalg.norm(q[:, None, :] - r[None, :, :], axis=2)


@pytest.mark.requirement("isolation 2.4")
@pytest.mark.parametrize("metric", ["COSINE", "DOT", "L2"])
def test_search_equals_numpy_in_float64(vectors: Vectors, metric: str) -> None:
    random = np.random.default_rng(7)
    rows = random.normal(size=(3000, DIMENSION)).astype(np.float32)
    queries = random.normal(size=(9, DIMENSION)).astype(np.float32)
    name = f"exact-{metric.lower()}"
    assert vectors.create(name, metric)
    assert vectors.upsert(name, [f"p{i:05d}" for i in range(len(rows))], rows) == (3000, 0)
    wanted = exact(metric, queries, rows)
    for found, scores in zip(vectors.search(name, queries, 50), wanted, strict=True):
        assert len(found) == 50
        order = np.argsort(-scores, kind="stable")
        for rank, (point, score, _) in enumerate(found):
            assert abs(score - scores[order[rank]]) < 1e-5 * max(1.0, abs(scores[order[rank]]))
            assert abs(scores[int(point[1:])] - scores[order[rank]]) < 1e-6 * max(1.0, abs(scores[order[rank]]))
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection=name))


def test_replaced_deleted_and_payloads(vectors: Vectors) -> None:
    rows = np.eye(4, DIMENSION, dtype=np.float32)
    vectors.create("changes")
    assert vectors.upsert("changes", ["a", "b", "c"], rows[:3], ['{"n": 1}', "", '{"n": 9007199254740993}']) == (3, 0)
    assert vectors.upsert("changes", ["b", "d"], rows[2:4], ['{"n": 2}', ""]) == (1, 1)
    [[first, second]] = vectors.search("changes", rows[2:3], 2)
    assert [first[0], second[0]] == ["b", "c"]
    assert (first[2], second[2]) == ('{"n": 2}', '{"n": 9007199254740993}')
    request = vectors.w.DeleteVectorsRequest(collection="changes", ids=["b", "nobody"])
    assert vectors.call("DeleteVectors", request).deleted == 1
    assert [point[0] for point in vectors.search("changes", rows[2:3], 9)[0]] == ["c", "a", "d"]
    assert vectors.points("changes") == 3
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="changes"))


def test_a_tenant_sees_its_own_collections_only(wire: Any, channel: grpc.Channel) -> None:
    mine, theirs = Vectors(wire, channel, "tenant-a"), Vectors(wire, channel, "tenant-b")
    mine.create("notes")
    assert theirs.create("notes"), "the same name is free for another tenant"
    mine.upsert("notes", ["x"], np.ones((1, DIMENSION), dtype=np.float32))
    assert theirs.points("notes") == 0
    theirs.call("DropCollection", theirs.w.DropCollectionRequest(collection="notes"))
    assert mine.points("notes") == 1
    listed = theirs.call("ListCollections", theirs.w.ListCollectionsRequest()).collections
    assert list(listed) == []
    mine.call("DropCollection", mine.w.DropCollectionRequest(collection="notes"))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_acknowledged_is_there_after_a_restart(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path, end: signal.Signals
) -> None:
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    random = np.random.default_rng(3)
    rows = random.normal(size=(200, DIMENSION)).astype(np.float32)
    ids = [f"p{i}" for i in range(200)]
    vectors.create("kept", "L2")
    vectors.upsert("kept", ids, rows, [f'{{"i": {i}}}' for i in range(200)])
    before = vectors.search("kept", rows[:5], 7)
    os.kill(server.pid, end)
    server.stop()
    server.start()
    vectors = Vectors(wire, open_channel(server))
    assert vectors.points("kept") == 200
    assert vectors.search("kept", rows[:5], 7) == before
    checked = [line for line in server.events() if "its file is checked" in str(line.get("message"))]
    assert bool(checked) == (end is signal.SIGKILL), "an orderly end closes the files"
    server.stop()


def test_a_damaged_file_refuses_its_collection_and_leaves_the_others(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, refused: Any, tmp_path: Path
) -> None:
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    for name in ("good", "bad"):
        vectors.create(name)
        vectors.upsert(name, ["x"], np.ones((1, DIMENSION), dtype=np.float32))
    server.stop()
    (tmp_path / "raw" / "bad.redb").write_bytes(b"not a database" * 1000)
    server.start()
    vectors = Vectors(wire, open_channel(server))
    assert vectors.points("good") == 1
    request = vectors.w.GetCollectionStatisticsRequest(collection="bad")
    refusal = refused(vectors.stub.GetCollectionStatistics, request)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.DATA_LOSS, "COLLECTION_DAMAGED")
    assert '"bad"' in refusal.message
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="bad"))
    assert vectors.create("bad")
    server.stop()


def test_a_search_of_the_largest_k_in_a_small_collection_gives_what_is_there(vectors: Vectors) -> None:
    vectors.create("small", "DOT")
    assert vectors.search("small", np.ones((1, DIMENSION)), 10_000) == [[]]
    vectors.upsert("small", ["b", "a"], np.ones((2, DIMENSION), dtype=np.float32))
    assert [point[0] for point in vectors.search("small", np.ones((1, DIMENSION)), 10_000)[0]] == ["a", "b"]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="small"))
