"""Sparse vectors in collections: exact, fused with dense ones, durable, and refused by place when they are wrong."""

from __future__ import annotations

import os
import signal
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .test_vectors import ONLY_VECTOR, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

WIDTH, TERMS, COUNT = 8, 300, 2_000
Row = dict[int, float]


class Sparse(Vectors):
    """The raw service, with sparse vectors as dicts."""

    def make(self, name: str, sparse_dimension: int = TERMS, metric: str = "COSINE") -> None:
        collection = self.w.Collection(
            name=name, dimension=WIDTH, metric=getattr(self.w, f"METRIC_{metric}"), sparse_dimension=sparse_dimension
        )
        self.call("CreateCollection", self.w.CreateCollectionRequest(collection=collection))

    def csr(self, rows: list[Row]) -> Any:
        return self.w.SparseVectors(
            offsets=np.cumsum([0, *map(len, rows)]),
            indices=[index for row in rows for index in sorted(row)],
            weights=np.array([row[index] for row in rows for index in sorted(row)], "<f4").tobytes(),
        )

    def write(self, name: str, ids: list[str], dense: np.ndarray, rows: list[Row] | None, payloads: Any = ()) -> None:
        request = self.w.UpsertVectorsRequest(
            collection=name,
            ids=ids,
            vectors=self.tensor(dense),
            payloads=payloads,
            sparse=None if rows is None else self.csr(rows),
        )
        self.call("UpsertVectors", request)

    def request(self, name: str, dense: Any = None, rows: list[Row] | None = None, k: int = 10, **more: Any) -> Any:
        return self.w.SearchVectorsRequest(
            collection=name,
            queries=None if dense is None else self.tensor(dense),
            sparse_queries=None if rows is None else self.csr(rows),
            k=k,
            **more,
        )

    def find(self, *arguments: Any, **more: Any) -> list[list[Any]]:
        answer = self.call("SearchVectors", self.request(*arguments, **more))
        return [list(hits.points) for hits in answer.hits]

    def read(self, name: str, ids: list[str]) -> dict[str, Row]:
        found = self.call("FetchVectors", self.w.FetchVectorsRequest(collection=name, ids=ids, with_sparse=True))
        offsets, weights = found.sparse.offsets, np.frombuffer(found.sparse.weights, "<f4")
        parts = [slice(offsets[i], offsets[i + 1]) for i in range(len(found.ids))]
        rows = (dict(zip(found.sparse.indices[part], weights[part].tolist(), strict=True)) for part in parts)
        return dict(zip(found.ids, rows, strict=True))


def some_rows(random: np.random.Generator, count: int, most: int = 12) -> list[Row]:
    """Weights on a coarse grid, so that equal scores happen; some rows without terms."""
    return [
        {
            int(term): float(weight)
            for term, weight in zip(
                random.choice(TERMS, size=size, replace=False), random.integers(1, 9, size=size) / 4, strict=True
            )
        }
        for size in random.integers(0, most, size=count)
    ]


def exact(query: Row, rows: dict[str, Row], k: int) -> list[tuple[str, float]]:
    """The k best of the points that share a term with the query, in float64."""
    scores = {
        one: float(sum(np.float64(row[term]) * np.float64(query[term]) for term in row.keys() & query.keys()))
        for one, row in rows.items()
        if row.keys() & query.keys()
    }
    return sorted(scores.items(), key=lambda point: (-point[1], point[0]))[:k]


def fused(lists: list[tuple[list[str], float]], k: int, constant: float) -> list[tuple[str, float]]:
    """Reciprocal-rank fusion in plain Python."""
    scores: dict[str, float] = {}
    for ranked, weight in lists:
        for rank, one in enumerate(ranked, start=1):
            scores[one] = scores.get(one, 0.0) + weight / (constant + rank)
    return sorted(scores.items(), key=lambda point: (-point[1], point[0]))[:k]


@pytest.fixture(scope="module")
def sparse(wire: Any, channel: grpc.Channel) -> Sparse:
    return Sparse(wire, channel)


@pytest.fixture(scope="module")
def filled(sparse: Sparse) -> Iterator[tuple[str, np.ndarray, dict[str, Row]]]:
    """A collection with dense and sparse vectors that was written, replaced and deleted from."""
    random = np.random.default_rng(11)
    name = "filled"
    sparse.make(name)
    ids = [f"p{i:05d}" for i in range(COUNT)]
    dense = random.normal(size=(COUNT, WIDTH)).astype(np.float32)
    sparse.write(name, ids, dense, some_rows(random, COUNT), [f'{{"third": {i % 3}}}' for i in range(COUNT)])
    rows = some_rows(random, COUNT)
    sparse.write(name, ids, dense, rows, [f'{{"third": {i % 3}}}' for i in range(COUNT)])
    sparse.write(name, ids[:50], dense[:50], None)
    sparse.call("DeleteVectors", sparse.w.DeleteVectorsRequest(collection=name, ids=ids[100:200]))
    kept = {one: row for i, (one, row) in enumerate(zip(ids, rows, strict=True)) if i >= 50 and not 100 <= i < 200}
    yield name, dense, kept
    sparse.call("DropCollection", sparse.w.DropCollectionRequest(collection=name))


Filled = tuple[str, np.ndarray, dict[str, Row]]


@pytest.mark.parametrize("k", [1, 10, 10_000])
def test_a_sparse_search_is_the_inner_product_in_float64(sparse: Sparse, filled: Filled, k: int) -> None:
    name, _, rows = filled
    queries = some_rows(np.random.default_rng(12), 20, most=40)
    for query, found in zip(queries, sparse.find(name, None, queries, k), strict=True):
        wanted = exact(query, rows, k)
        assert [point.id for point in found] == [one for one, _ in wanted]
        assert [point.score for point in found] == pytest.approx([score for _, score in wanted], rel=1e-6)
        assert not any(point.HasField("sparse_rank") for point in found)


def test_a_filter_and_a_threshold_are_decided_before_the_best_are_taken(sparse: Sparse, filled: Filled) -> None:
    name, _, rows = filled
    query = dict.fromkeys(range(0, TERMS, 3), 1.0)
    third = sparse.w.Filter(equals=sparse.w.FilterEquals(field=["third"], value=sparse.w.FilterValue(integer=1)))
    [found] = sparse.find(name, None, [query], 30, filter=third)
    wanted = exact(query, {one: row for one, row in rows.items() if int(one[1:]) % 3 == 1}, 30)
    assert [(point.id, point.score) for point in found] == wanted
    least = exact(query, rows, 100)[60][1]
    [found] = sparse.find(name, None, [query], 1_000, score_threshold=least)
    assert [point.id for point in found] == [one for one, score in exact(query, rows, COUNT) if score >= least]


@pytest.mark.parametrize(
    ("fusion", "candidates", "constant", "weights"),
    [
        (None, 100, 60, (1, 1)),
        ({"candidates": 30, "rank_constant": 0}, 30, 0, (1, 1)),
        ({"rank_constant": 10, "dense_weight": 0.5, "sparse_weight": 2}, 100, 10, (0.5, 2)),
    ],
    ids=["defaults", "candidates", "weights"],
)
def test_a_search_by_both_is_their_fusion_by_ranks(
    sparse: Sparse, filled: Filled, fusion: dict[str, float] | None, candidates: int, constant: float, weights: Any
) -> None:
    name, dense, _ = filled
    random = np.random.default_rng(13)
    rows = some_rows(random, 12, most=30)
    queries = dense[random.choice(COUNT, size=12)] + random.normal(size=(12, WIDTH)).astype(np.float32)
    by_dense = sparse.find(name, queries, None, candidates)
    by_sparse = sparse.find(name, None, rows, candidates)
    more = {} if fusion is None else {"fusion": sparse.w.RankFusion(**fusion)}
    for found, near, alike in zip(sparse.find(name, queries, rows, 25, **more), by_dense, by_sparse, strict=True):
        ranked = [[point.id for point in one] for one in (near, alike)]
        wanted = fused(list(zip(ranked, weights, strict=True)), 25, constant)
        assert [point.id for point in found] == [one for one, _ in wanted]
        assert [point.score for point in found] == pytest.approx([score for _, score in wanted], rel=1e-6)
        for point in found:
            for kind, points in (("dense", near), ("sparse", alike)):
                there = [(i, p.score) for i, p in enumerate(points, start=1) if p.id == point.id]
                told = (getattr(point, f"{kind}_rank"), getattr(point, f"{kind}_score"))
                assert told == (there[0] if there else (0, 0))
                assert point.HasField(f"{kind}_rank") == point.HasField(f"{kind}_score") == bool(there)


def test_fetched_rows_are_those_that_were_written(sparse: Sparse, filled: Filled) -> None:
    name, _, rows = filled
    ids = [*list(rows)[::-7], "p00003", "p00150"]
    assert sparse.read(name, ids) == {one: rows.get(one, {}) for one in ids if one != "p00150"}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_sparse_vectors_outlive_the_process(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path, end: signal.Signals
) -> None:
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Sparse(wire, open_channel(server))
    random = np.random.default_rng(5)
    rows, ids = some_rows(random, 300), [f"p{i:03d}" for i in range(300)]
    dense = random.normal(size=(300, WIDTH)).astype(np.float32)
    vectors.make("kept", 2**31 - 1)
    vectors.write("kept", ids, dense, [{term + 2**31 - 1 - TERMS: w for term, w in row.items()} for row in rows])
    vectors.write("kept", ids, dense, rows)
    vectors.call("DeleteVectors", vectors.w.DeleteVectorsRequest(collection="kept", ids=ids[:10]))
    os.kill(server.pid, end)
    server.stop()
    server.start()
    vectors = Sparse(wire, open_channel(server))
    kept = dict(zip(ids[10:], rows[10:], strict=True))
    assert vectors.read("kept", ids) == kept
    query = dict.fromkeys(range(TERMS), 1.0)
    [found] = vectors.find("kept", None, [query], 1_000)
    assert [(point.id, point.score) for point in found] == exact(query, kept, 1_000)
    [listed] = vectors.call("ListCollections", vectors.w.ListCollectionsRequest()).collections
    assert listed.sparse_dimension == 2**31 - 1
    server.stop()


def weights(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"offsets": [0, 1], "indices": [1], "weights": weights(1)}, "sparse.offsets"),
        ({"offsets": [0, 2, 1], "indices": [1, 2], "weights": weights(1, 1)}, "sparse.offsets[2]"),
        ({"offsets": [0, 1, 2], "indices": [1, TERMS], "weights": weights(1, 1)}, "sparse.indices[1]"),
        ({"offsets": [0, 1, 3], "indices": [1, 2, 2], "weights": weights(1, 1, 1)}, "sparse.indices[2]"),
        ({"offsets": [0, 1, 2], "indices": [1, 2], "weights": weights(1)}, "sparse.weights"),
        ({"offsets": [0, 1, 2], "indices": [1, 2], "weights": weights(1, np.nan)}, "sparse.weights[1]"),
        ({"offsets": [0, 1, 2], "indices": [1, 2], "weights": weights(0, 1)}, "sparse.weights[0]"),
    ],
    ids=["rows", "falling", "range", "twice", "length", "NaN", "zero"],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    sparse: Sparse, refused: Any, wrong: dict[str, Any], field: str
) -> None:
    name = f"wrong-{uuid.uuid4().hex}"
    sparse.make(name)
    request = sparse.w.UpsertVectorsRequest(
        collection=name,
        ids=["a", "b"],
        vectors=sparse.tensor(np.eye(2, WIDTH)),
        sparse=sparse.w.SparseVectors(**wrong),
    )
    refusal = refused(sparse.stub.UpsertVectors, request)
    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.fields) == [field]
    assert sparse.points(name) == 0
    sparse.call("DropCollection", sparse.w.DropCollectionRequest(collection=name))


def test_searches_that_make_no_sense_are_refused(sparse: Sparse, refused: Any, filled: Filled) -> None:
    name, dense, _ = filled
    one, row = dense[:1], [{1: 1.0}]
    fusion = sparse.w.RankFusion
    for request, field in (
        (sparse.request(name), "queries"),
        (sparse.request(name, one, fusion=fusion()), "fusion"),
        (sparse.request(name, one, row * 2), "sparse_queries.offsets"),
        (sparse.request(name, one, row, k=10, fusion=fusion(candidates=9)), "fusion.candidates"),
        (sparse.request(name, one, row, k=10, fusion=fusion(rank_constant=-1)), "fusion.rank_constant"),
        (sparse.request(name, one, row, k=10, fusion=fusion(sparse_weight=0)), "fusion.sparse_weight"),
        (sparse.request(name, None, [{TERMS: 1.0}]), "sparse_queries.indices[0]"),
        (sparse.request(name, None, []), "queries"),
    ):
        assert list(refused(sparse.stub.SearchVectors, request).fields) == [field], field


def test_a_collection_without_them_takes_none(sparse: Sparse, refused: Any) -> None:
    name = "dense-only"
    sparse.make(name, 0)
    write = sparse.w.UpsertVectorsRequest(
        collection=name, ids=["a"], vectors=sparse.tensor(np.eye(1, WIDTH)), sparse=sparse.csr([{1: 1.0}])
    )
    for method, request, field in (
        ("UpsertVectors", write, "sparse"),
        ("SearchVectors", sparse.request(name, None, [{1: 1.0}]), "sparse_queries"),
        ("FetchVectors", sparse.w.FetchVectorsRequest(collection=name, ids=["a"], with_sparse=True), "with_sparse"),
    ):
        assert list(refused(getattr(sparse.stub, method), request).fields) == [field]
    collection = sparse.w.Collection(name="wide", dimension=WIDTH, sparse_dimension=2**31)
    refusal = refused(sparse.stub.CreateCollection, sparse.w.CreateCollectionRequest(collection=collection))
    assert list(refusal.fields) == ["collection.sparse_dimension"]
    sparse.call("DropCollection", sparse.w.DropCollectionRequest(collection=name))
