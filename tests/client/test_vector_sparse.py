"""Sparse and hybrid search through the client, blocking and awaitable, and with real models from text to hit."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from tests.server.checkpoints import write_bert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

TERMS, COUNT = 1_000, 3_000


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.VectorClient:
    # Small requests, so that the tests see points and queries split.
    return medkg.VectorClient(address=server.address, tenant="hybrid", max_batch_bytes=16 * 1024)


@pytest.fixture
def collection(client: medkg.VectorClient) -> Iterator[str]:
    name = f"c-{uuid.uuid4().hex}"
    info = client.create_collection(name, 8, sparse_dimension=TERMS)
    assert (info.sparse_dimension, info.created) == (TERMS, True)
    yield name
    client.drop_collection(name)


def csr(count: int, seed: int, *, most: int = 40) -> medkg.SparseVectors:
    """Random rows, some without terms, as scipy would give them: int32 throughout."""
    random = np.random.default_rng(seed)
    rows = [np.sort(random.choice(TERMS, size=size, replace=False)) for size in random.integers(0, most, size=count)]
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    weights = random.gamma(2, 0.5, size=indptr[-1]).astype(np.float32) + np.float32(0.01)
    return medkg.SparseVectors(indptr, np.concatenate(rows).astype(np.int32), weights)


def dense(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def whole(sparse: Any) -> np.ndarray:
    """The same as a dense array in float64; NaN-free, so 0 is no term."""
    rows = np.zeros((len(sparse.indptr) - 1, TERMS))
    for row in range(len(rows)):
        part = slice(sparse.indptr[row], sparse.indptr[row + 1])
        rows[row, sparse.indices[part]] = sparse.values[part]
    return rows


def ranked(scores: np.ndarray, most: int) -> list[int]:
    """The best rows that have a score above 0; ids are in the order of rows."""
    return [int(row) for row in np.argsort(-scores, kind="stable")[:most] if scores[row] > 0]


def test_what_is_written_in_parts_is_found_as_a_whole(client: medkg.VectorClient, collection: str) -> None:
    ids, vectors, sparse = [f"{i:05d}" for i in range(COUNT)], dense(COUNT, 1), csr(COUNT, 2)
    written = client.upsert(collection, ids, vectors, [{"n": i} for i in range(COUNT)], sparse=sparse)
    assert (written.inserted, written.replaced) == (COUNT, 0)
    queries, asked = dense(300, 3), csr(300, 4)
    alike = whole(asked) @ whole(sparse).T
    by_sparse = client.search(collection, k=7, sparse=asked)
    for row, hits in enumerate(by_sparse):
        assert [int(hit.id) for hit in hits] == ranked(alike[row], 7)
        for hit in hits:
            assert hit.score == pytest.approx(alike[row, int(hit.id)], rel=1e-6)
            assert (hit.payload, hit.sparse_rank) == ({"n": int(hit.id)}, None)
    # A tuple says the same.
    assert client.search(collection, k=7, sparse=(asked.indptr, asked.indices, asked.values)) == by_sparse
    near = queries.astype(np.float64) @ vectors.astype(np.float64).T + 2
    fusion = medkg.RankFusion(candidates=50, rank_constant=20, sparse_weight=1.5)
    by_both = client.search(collection, queries, 10, sparse=asked, fusion=fusion, with_payload=False)
    for row, hits in enumerate(by_both):
        places = [{one: at for at, one in enumerate(ranked(scores[row], 50), 1)} for scores in (near, alike)]
        score = {
            one: sum(weight / (20 + of[one]) for of, weight in zip(places, (1, 1.5), strict=True) if one in of)
            for one in places[0] | places[1]
        }
        assert [int(hit.id) for hit in hits] == sorted(score, key=lambda one: (-score[one], one))[:10]
        for hit in hits:
            one = int(hit.id)
            assert hit.score == pytest.approx(score[one], rel=1e-6)
            assert (hit.dense_rank, hit.sparse_rank) == (places[0].get(one), places[1].get(one))
            assert (hit.sparse_score is None) == (hit.sparse_rank is None)
            if hit.dense_score is not None:
                assert hit.dense_score == pytest.approx(near[row, one] - 2, abs=1e-5)


def test_rows_come_back_as_they_were_written(client: medkg.VectorClient, collection: str) -> None:
    ids, sparse = [f"{i:05d}" for i in range(600)], csr(600, 5)
    client.upsert(collection, ids, dense(600, 6), sparse=sparse)
    client.upsert(collection, ids[:2], dense(2, 7))
    found = client.fetch(collection, [*ids, "nobody"], with_vectors=False, with_sparse=True)
    assert (found.ids, found.missing, found.vectors) == (ids, ["nobody"], None)
    assert found.sparse is not None
    wanted = whole(sparse)
    wanted[:2] = 0
    np.testing.assert_array_equal(whole(found.sparse), wanted)
    assert client.fetch(collection, ids[:3]).sparse is None
    assert client.statistics(collection).sparse_dimension == TERMS
    assert [info.sparse_dimension for info in client.collections() if info.name == collection] == [TERMS]


def test_the_awaitable_client_does_the_same(server: LocalServer, client: medkg.VectorClient, collection: str) -> None:
    ids, vectors, sparse = ["a", "b", "c"], dense(3, 8), csr(3, 9, most=200)
    how = medkg.RankFusion(dense_weight=2)

    async def work() -> tuple[Any, Any]:
        async with medkg.connect_async(address=server.address, tenant="hybrid") as services:
            name = f"{collection}-async"
            await services.vector.create_collection(name, 8, sparse_dimension=TERMS)
            await services.vector.upsert(name, ids, vectors, sparse=sparse)
            hits = await services.vector.search(name, vectors, 2, sparse=sparse, fusion=how)
            found = await services.vector.fetch(name, ids, with_sparse=True)
            await services.vector.drop_collection(name)
            return hits, found

    hits, found = asyncio.run(work())
    client.upsert(collection, ids, vectors, sparse=sparse)
    assert hits == client.search(collection, vectors, 2, sparse=sparse, fusion=how)
    np.testing.assert_array_equal(whole(found.sparse), whole(sparse))


@pytest.mark.parametrize(
    ("sparse", "what"),
    [
        ([1, 2], r"sparse: is a list; give a medkg\.SparseEmbeddingResult"),
        ((np.array([0, 1]), [3], np.ones(1, np.float32)), r"sparse\.indices: is a list, not a numpy array"),
        ((np.array([0, 1]), np.array([3]), np.ones(1)), r"sparse\.weights: has dtype float64"),
        ((np.array([0, 2]), np.array([3]), np.ones(1, np.float32)), r"sparse\.offsets\[1\]: is 2"),
        ((np.array([0, 1]), np.array([-1]), np.ones(1, np.float32)), r"sparse\.indices\[0\]: is -1"),
        ((np.array([0, 1]), np.array([TERMS]), np.ones(1, np.float32)), r"sparse\.indices\[0\] is 1000"),
        ((np.array([0, 1, 1]), np.array([1]), np.ones(1, np.float32)), r"sparse: has 2 rows for 1 ids"),
        ((np.array([0, 1]), np.array([1]), np.zeros(1, np.float32)), r"sparse\.weights\[0\] is 0"),
    ],
    ids=["list", "no array", "float64", "too far", "negative", "beyond", "rows", "zero"],
)
def test_what_is_wrong_is_named(client: medkg.VectorClient, collection: str, sparse: Any, what: str) -> None:
    with pytest.raises(medkg.VectorValidationError, match=what):
        client.upsert(collection, ["a"], dense(1, 1), sparse=sparse)
    assert client.count(collection) == 0


def test_a_place_in_a_later_request_is_named_as_the_caller_counts(client: medkg.VectorClient, collection: str) -> None:
    sparse = csr(COUNT, 10)
    at = len(sparse.indices) - 3
    values = sparse.values.copy()
    values[at] = np.nan
    with pytest.raises(medkg.VectorValidationError) as caught:
        client.upsert(
            collection,
            [f"{i:05d}" for i in range(COUNT)],
            dense(COUNT, 1),
            sparse=medkg.SparseVectors(sparse.indptr, sparse.indices, values),
        )
    assert caught.value.field_violations[0][0] == f"sparse.weights[{at}]"
    with pytest.raises(medkg.VectorValidationError) as caught:
        client.search(collection, sparse=medkg.SparseVectors(sparse.indptr, sparse.indices, values))
    assert caught.value.field_violations[0][0] == f"sparse_queries.weights[{at}]"


def test_searches_that_make_no_sense_are_refused(client: medkg.VectorClient, collection: str) -> None:
    query, row = dense(1, 1), csr(2, 3)
    wrong: Any = {"rank_constant": 60}
    for arguments, field in (
        ({}, "queries"),
        ({"queries": query, "fusion": medkg.RankFusion()}, "fusion"),
        ({"queries": query, "sparse": row}, "sparse_queries"),
        ({"queries": dense(2, 1), "sparse": row, "fusion": wrong}, "fusion"),
        ({"queries": dense(2, 1), "sparse": row, "fusion": medkg.RankFusion(candidates=0)}, "fusion.candidates"),
        ({"queries": dense(2, 1), "sparse": row, "fusion": medkg.RankFusion(candidates=3)}, "fusion.candidates"),
        ({"queries": dense(2, 1), "sparse": row, "fusion": medkg.RankFusion(rank_constant=-1)}, "fusion.rank_constant"),
    ):
        with pytest.raises(medkg.VectorValidationError) as caught:
            client.search(collection, **arguments)  # type: ignore[arg-type]
        assert caught.value.field_violations[0][0] == field


TEXTS = [
    "Aspirin inhibits platelet aggregation.",
    "Metformin lowers blood glucose in type 2 diabetes.",
    "Statins reduce low-density lipoprotein cholesterol.",
    "Warfarin is an anticoagulant that needs monitoring of the INR.",
    "Amoxicillin treats bacterial infections of the airways.",
    "Insulin therapy in children with type 1 diabetes.",
]


def test_from_text_to_hits_by_both_kinds_of_models(
    start_server: Callable[..., LocalServer], minilm_dir: Path, tmp_path: Path
) -> None:
    splade = write_bert(tmp_path / "splade", minilm_dir, seed=3, sparse=True).folder
    models = {"dense": minilm_dir, "splade": splade}
    server = start_server(
        services=("embedding", "vector"), embedding_models=models, reranking_models={}, data_dir=tmp_path / "data"
    )
    with medkg.connect(address=server.address, tenant="papers") as services:
        near = services.embedding.embed(TEXTS, model="dense")
        # Random weights find half of the vocabulary in each text, which is more than a row may have.
        alike = services.embedding.embed_sparse(TEXTS, max_terms=2_000)
        vectors = near.as_float32()
        services.vector.create_collection("papers", near.dimension, sparse_dimension=alike.dimension)
        services.vector.upsert("papers", [f"{i}" for i in range(len(TEXTS))], vectors, sparse=alike)
        # Each text is nearest to itself by its dense vector; by the sparse one it is where the inner products say.
        products = np.zeros((len(TEXTS), alike.dimension))
        for row in range(len(TEXTS)):
            terms, weights = alike.row(row)
            products[row, terms] = weights
        products = products @ products.T
        cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
        for row, hits in enumerate(services.vector.search("papers", vectors, len(TEXTS), sparse=alike)):
            order = [np.argsort(-scores[row], kind="stable").tolist() for scores in (cosines, products)]
            assert order[0][0] == row
            assert (products[row] > 0).all(), "they share terms, so each is found by both"
            score = {one: sum(1 / (61 + of.index(one)) for of in order) for one in range(len(TEXTS))}
            wanted = sorted(score, key=lambda one: (-score[one], str(one)))
            assert [int(hit.id) for hit in hits] == wanted
            for hit in hits:
                assert (hit.dense_rank, hit.sparse_rank) == tuple(of.index(int(hit.id)) + 1 for of in order)
                assert hit.sparse_score == pytest.approx(products[row, int(hit.id)], rel=1e-5)
    server.stop()
