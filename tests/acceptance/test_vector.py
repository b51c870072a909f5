"""The vector index stores, finds exactly, forgets, and keeps tenants apart. Collections are dropped at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg
from medkg.filters import Equals, Range

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deployment import Deployment

ROLES_NEEDED = ("vector",)
POINTS, DIMENSION, K = 500, 48, 10


def exact(metric: str, points: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Scores of every query against every point, in float64; larger is nearer."""
    points, queries = points.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(queries[:, None, :] - points[None, :, :], axis=2)
    if metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ points.T


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_search_is_exact(services: medkg.Services, new_collection: Callable[..., str], metric: str) -> None:
    generator = np.random.default_rng(7)
    points = generator.normal(size=(POINTS, DIMENSION)).astype(np.float32)
    queries = generator.normal(size=(5, DIMENSION)).astype(np.float32)
    ids = [f"point-{number}" for number in range(POINTS)]
    payloads = [{"number": number, "title": f"Artikel Ä {number}"} for number in range(POINTS)]
    name = new_collection(DIMENSION, metric)
    written = services.vector.upsert(name, ids, points, payloads)
    assert (written.inserted, written.replaced) == (POINTS, 0)
    scores = exact(metric, points, queries)
    for row, hits in zip(scores, services.vector.search(name, queries, k=K), strict=True):
        best = np.argsort(-row)[:K]
        assert [hit.id for hit in hits] == [ids[index] for index in best]
        np.testing.assert_allclose([hit.score for hit in hits], row[best], rtol=1e-4, atol=1e-4)
        assert [hit.payload for hit in hits] == [payloads[index] for index in best]


def test_a_point_can_be_replaced_and_deleted(services: medkg.Services, new_collection: Callable[..., str]) -> None:
    vector = services.vector
    name = new_collection(3)
    axes = np.eye(3, dtype=np.float32)
    vector.upsert(name, ["x", "y", "z"], axes, [{"axis": axis} for axis in "xyz"])
    replaced = vector.upsert(name, ["x"], axes[2:], [{"axis": "x, turned"}])
    assert (replaced.inserted, replaced.replaced) == (0, 1)
    (hits,) = vector.search(name, axes[2], k=3)
    assert {hit.id for hit in hits[:2]} == {"x", "z"}
    assert next(hit.payload for hit in hits if hit.id == "x") == {"axis": "x, turned"}
    assert vector.delete(name, ["x", "never-there"]) == 1
    (hits,) = vector.search(name, axes[2], k=3, with_payload=False)
    assert [hit.id for hit in hits] == ["z", "y"]
    assert all(hit.payload is None for hit in hits)


def test_filters_fetch_and_count(services: medkg.Services, new_collection: Callable[..., str]) -> None:
    vector = services.vector
    name = new_collection(2, "l2")
    points = np.array([[number, 0] for number in range(20)], dtype=np.float32)
    ids = [f"point-{number:02d}" for number in range(20)]
    payloads = [{"number": number, "kind": "even" if number % 2 == 0 else "odd"} for number in range(20)]
    vector.upsert(name, ids, points, payloads)
    filter_ = Equals("kind", "odd") & ~Range("number", lt=8)
    (hits,) = vector.search(name, points[0], k=3, filter=filter_)
    assert [hit.id for hit in hits] == ["point-09", "point-11", "point-13"]
    (hits,) = vector.search(name, points[0], k=3, filter=filter_, score_threshold=-11)
    assert [(hit.id, hit.score) for hit in hits] == [("point-09", -9.0), ("point-11", -11.0)]
    assert (vector.count(name), vector.count(name, filter_)) == (20, 6)
    fetched = vector.fetch(name, ["point-07", "never-there"])
    assert fetched.vectors is not None
    np.testing.assert_array_equal(fetched.vectors, points[7:8])
    assert (fetched.payloads, fetched.missing) == ([payloads[7]], ["never-there"])
    with pytest.raises(medkg.VectorValidationError, match="unknown filter field"):
        vector.count(name, Equals("author", "nobody"))


def test_statistics_tell_what_is_stored(services: medkg.Services, new_collection: Callable[..., str]) -> None:
    name = new_collection(4, "dot")
    empty = services.vector.statistics(name)
    services.vector.upsert(name, ["a", "b"], np.ones((2, 4), dtype=np.float32))
    services.vector.search(name, np.ones(4, dtype=np.float32), k=1)
    full = services.vector.statistics(name)
    assert (full.name, full.dimension, full.metric) == (name, 4, "dot")
    assert (empty.points, full.points) == (0, 2)
    assert full.queries == empty.queries + 1
    assert full.disk_bytes >= empty.disk_bytes > 0  # a file grows in steps
    assert full.device_bytes > empty.device_bytes
    assert full.device


def test_a_dropped_collection_is_gone(services: medkg.Services, new_collection: Callable[..., str]) -> None:
    name = new_collection(2)
    assert name in [collection.name for collection in services.vector.collections()]
    services.vector.upsert(name, ["a"], np.ones((1, 2), dtype=np.float32))
    assert services.vector.drop_collection(name) == 1
    assert name not in [collection.name for collection in services.vector.collections()]
    with pytest.raises(medkg.CollectionNotFoundError):
        services.vector.search(name, np.ones(2, dtype=np.float32))


def test_a_tenant_sees_nothing_of_another(
    services: medkg.Services, deployment: Deployment, new_collection: Callable[..., str]
) -> None:
    name, other = new_collection(2), deployment.other_tenant
    assert other != deployment.config.tenant
    mine = np.array([[1, 0]], dtype=np.float32)
    services.vector.upsert(name, ["mine"], mine, [{"secret": True}])
    assert name not in [collection.name for collection in services.vector.collections(tenant=other)]
    for forbidden in (
        lambda: services.vector.search(name, mine[0], tenant=other),
        lambda: services.vector.statistics(name, tenant=other),
        lambda: services.vector.fetch(name, ["mine"], tenant=other),
        lambda: services.vector.count(name, Equals("secret", value=True), tenant=other),
        lambda: services.vector.delete(name, ["mine"], tenant=other),
        lambda: services.vector.drop_collection(name, tenant=other),
    ):
        with pytest.raises(medkg.CollectionNotFoundError):
            forbidden()
    # The same name is another collection to the other tenant.
    try:
        assert services.vector.create_collection(name, 2, tenant=other).created
        services.vector.upsert(name, ["theirs"], mine, tenant=other)
        (hits,) = services.vector.search(name, mine[0], k=10)
        assert [hit.id for hit in hits] == ["mine"]
    finally:
        services.vector.drop_collection(name, tenant=other)
    assert services.vector.statistics(name).points == 1
