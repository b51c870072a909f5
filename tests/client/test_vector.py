"""VectorClient against a real gpu-server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.VectorClient:
    # Small requests, so that the tests see inputs split.
    return medkg.VectorClient(address=server.address, tenant="vector", max_batch_bytes=16 * 1024)


@pytest.fixture
def collection(client: medkg.VectorClient) -> Iterator[str]:
    name = f"c-{uuid.uuid4().hex}"
    client.create_collection(name, 8)
    yield name
    if name in [found.name for found in client.collections()]:
        client.drop_collection(name)


def unit(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.requirement("isolation 6.4")
def test_what_is_written_is_found(client: medkg.VectorClient, collection: str) -> None:
    vectors = unit(2000)
    payloads = [{"n": i, "text": "é👩\u200d⚕️", "nested": {"list": [1, None]}} if i % 2 else None for i in range(2000)]
    written = client.upsert(collection, [f"id-{i}" for i in range(2000)], vectors, payloads)
    assert (written.inserted, written.replaced) == (2000, 0)
    queries = unit(100, seed=1)
    found = client.search(collection, queries, k=5)
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :5]
    assert [[int(hit.id[3:]) for hit in hits] for hits in found] == exact.tolist()
    assert found[0][0].score == pytest.approx(float((queries @ vectors.T)[0].max()), abs=1e-5)
    for hit in found[0]:
        assert hit.payload == payloads[int(hit.id[3:])]
    [[alone]] = client.search(collection, queries[0], k=1, with_payload=False)
    assert (alone.id, alone.payload) == (found[0][0].id, None)
    statistics = client.statistics(collection)
    assert (statistics.points, statistics.dimension, statistics.metric) == (2000, 8, "cosine")
    assert statistics.queries >= 101
    assert client.delete(collection, ["id-0", "id-1", "no-such-id"]) == 2
    assert client.upsert(collection, ["id-2", "id-0"], vectors[:2]) == medkg.UpsertResult(inserted=1, replaced=1)
    assert client.drop_collection(collection) == 1999


def test_collections_can_be_made_once_or_accepted(client: medkg.VectorClient, collection: str) -> None:
    with pytest.raises(medkg.AlreadyExistsError):
        client.create_collection(collection, 8)
    assert client.create_collection(collection, 8, exist_ok=True).created is False
    with pytest.raises(medkg.AlreadyExistsError):
        client.create_collection(collection, 9, exist_ok=True)
    with pytest.raises(medkg.VectorValidationError, match="metric"):
        client.create_collection(collection, 8, "manhattan")  # type: ignore[arg-type]


def test_a_tenant_sees_its_own_collections_only(client: medkg.VectorClient, collection: str) -> None:
    with pytest.raises(medkg.CollectionNotFoundError) as caught:
        client.search(collection, unit(1), tenant="stranger")
    assert (caught.value.reason, caught.value.tenant) == ("COLLECTION_NOT_FOUND", "stranger")
    assert collection not in [found.name for found in client.collections(tenant="stranger")]


@pytest.mark.parametrize(
    ("vectors", "what"),
    [
        (unit(2).astype(np.float64), "dtype float64"),
        (unit(4)[::2], "not C-contiguous"),
        (np.asfortranarray(unit(2)), "not C-contiguous"),
        (unit(2).ravel(), r"shape \[16\]"),
        (unit(2).tolist(), "not a numpy array"),
        (unit(3), "3 rows for 2 ids"),
    ],
    ids=["float64", "every other row", "Fortran order", "one dimension", "list", "too many"],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_sent(
    client: medkg.VectorClient, collection: str, vectors: object, what: str
) -> None:
    with pytest.raises(medkg.VectorValidationError, match=what) as caught:
        client.upsert(collection, ["a", "b"], vectors)  # type: ignore[arg-type]
    assert (caught.value.field_violations[0][0], caught.value.attempts) == ("vectors", 0)


def test_bad_points_are_named_by_the_callers_index(client: medkg.VectorClient, collection: str) -> None:
    vectors = unit(1000)
    vectors[777, 3] = np.nan
    ids = [f"id-{i}" for i in range(1000)]
    with pytest.raises(medkg.VectorValidationError, match=r"the first [0-9]+ points are written") as caught:
        client.upsert(collection, ids, vectors)
    assert caught.value.field_violations[0][0] == "vectors[777]"
    assert 0 < client.statistics(collection).points < 777
    with pytest.raises(medkg.VectorValidationError, match=r"ids\[999\]"):
        client.upsert(collection, [*ids[:-1], "id-0"], unit(1000))
    with pytest.raises(medkg.VectorValidationError, match=r"queries\[1\]|queries"):
        client.search(collection, np.full((2, 8), np.inf, dtype=np.float32))
    with pytest.raises(medkg.VectorValidationError):
        client.search(collection, np.zeros((1, 9), dtype=np.float32))


@pytest.mark.parametrize(
    ("payload", "what"),
    [({"x": float("nan")}, "JSON"), ({"x": object()}, "JSON"), ("text", "mapping"), ([1], "mapping")],
)
def test_payloads_that_are_no_json_objects_are_named(
    client: medkg.VectorClient, collection: str, payload: object, what: str
) -> None:
    with pytest.raises(medkg.VectorValidationError, match=what) as caught:
        client.upsert(collection, ["a", "b"], unit(2), [None, payload])  # type: ignore[list-item]
    assert caught.value.field_violations[0][0] == "payloads[1]"


def test_a_large_input_is_written_once_into_the_request(client: medkg.VectorClient, collection: str) -> None:
    # The array may change after the call, and must not be changed by it.
    vectors = unit(500)
    kept = vectors.copy()
    client.upsert(collection, [f"id-{i}" for i in range(500)], vectors)
    np.testing.assert_array_equal(vectors, kept)
    vectors[:] = 0
    [[best]] = client.search(collection, kept[42], k=1)
    assert best.id == "id-42"
