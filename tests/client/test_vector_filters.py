"""medkg.filters, thresholds, fetch and count against a real gpu-server."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from medkg.filters import And, Equals, Exists, Filter, In, Not, Or, Range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medkg.local import LocalServer

COUNT = 600
VECTORS = np.random.default_rng(3).normal(size=(COUNT, 8)).astype(np.float32)
PAYLOADS: list[dict[str, Any] | None] = [
    {"year": 2000 + i % 25, "study": {"type": ["trial", "review", "letter"][i % 3]}, "v1.0": i % 2 == 0}
    if i % 5
    else None
    for i in range(COUNT)
]


@pytest.fixture(scope="module")
def config(server: LocalServer) -> medkg.ClientConfig:
    # Small requests, so that the tests see inputs split.
    return medkg.ClientConfig(address=server.address, tenant="filters", max_batch_bytes=16 * 1024)


@pytest.fixture(scope="module")
def client(config: medkg.ClientConfig) -> medkg.VectorClient:
    return medkg.VectorClient(config)


@pytest.fixture(scope="module")
def studies(client: medkg.VectorClient) -> Iterator[str]:
    name = f"c-{uuid.uuid4().hex}"
    client.create_collection(name, 8, "dot")
    client.upsert(name, [f"id-{i:03d}" for i in range(COUNT)], VECTORS, PAYLOADS)
    yield name
    assert client.drop_collection(name) == COUNT


@pytest.mark.parametrize(
    ("filter_", "matches"),
    [
        (Equals("year", 2003), lambda p: p["year"] == 2003),
        (In("study.type", ["trial", "letter"]), lambda p: p["study"]["type"] != "review"),
        (Range("year", gte=2010, lt=2012.5), lambda p: 2010 <= p["year"] < 2012.5),
        (Equals(["v1.0"], value=True), lambda p: p["v1.0"]),
        (Range(("study", "type"), gt="m"), lambda p: p["study"]["type"] > "m"),
        (
            Range("year", gt=2010) & ~Equals("study.type", "trial"),
            lambda p: p["year"] > 2010 and p["study"]["type"] != "trial",
        ),
        (
            Or(Equals("year", 2001), And(Equals("year", 2002), Exists("study.type"))),
            lambda p: p["year"] in {2001, 2002},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Filter) else "",
)
def test_a_filter_is_decided_before_the_nearest_are_taken(
    client: medkg.VectorClient, studies: str, filter_: Filter, matches: Any
) -> None:
    keep = [i for i in range(COUNT) if (payload := PAYLOADS[i]) is not None and matches(payload)]
    assert client.count(studies, filter_) == len(keep) > 0
    query = VECTORS[7]
    [hits] = client.search(studies, query, k=20, filter=filter_)
    scores = VECTORS[keep].astype(np.float64) @ query.astype(np.float64)
    assert [hit.id for hit in hits] == [f"id-{keep[i]:03d}" for i in np.argsort(-scores, kind="stable")[:20]]


def test_the_awaitable_client_takes_the_same(config: medkg.ClientConfig, studies: str) -> None:
    filter_ = ~Exists("year") | Equals("year", 2004)
    blocking = medkg.VectorClient(config)

    async def work() -> None:
        async with medkg.connect_async(config) as services:
            found = await services.vector.search(studies, VECTORS[:3], filter=filter_, score_threshold=0.5)
            assert found == blocking.search(studies, VECTORS[:3], filter=filter_, score_threshold=0.5)
            assert await services.vector.count(studies, filter_) == blocking.count(studies, filter_)
            fetched = await services.vector.fetch(studies, ["id-001", "nobody"], with_vectors=False)
            assert (fetched.ids, fetched.vectors, fetched.missing) == (["id-001"], None, ["nobody"])
            assert fetched.payloads == [PAYLOADS[1]]

    asyncio.run(work())


def test_points_are_fetched_in_order_however_many(client: medkg.VectorClient, studies: str) -> None:
    order = np.random.default_rng(1).permutation(COUNT)
    ids = [f"id-{i:03d}" for i in order]
    found = client.fetch(studies, [*ids[:300], "nobody", *ids[300:], "none"])
    assert (found.ids, found.missing) == (ids, ["nobody", "none"])
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors, VECTORS[order])
    assert found.payloads == [PAYLOADS[i] for i in order]
    bare = client.fetch(studies, ["nobody"], with_payload=False)
    assert (bare.ids, bare.payloads, bare.missing) == ([], None, ["nobody"])
    assert bare.vectors is not None
    assert bare.vectors.shape[0] == 0
    with pytest.raises(medkg.VectorValidationError) as caught:
        client.fetch(studies, [])
    assert caught.value.field_violations[0][0] == "ids"
    assert client.count(studies) == COUNT


def test_points_below_the_threshold_are_left_out(client: medkg.VectorClient, studies: str) -> None:
    query = VECTORS[3]
    [hits] = client.search(studies, query, k=COUNT, score_threshold=2.0)
    scores = VECTORS.astype(np.float64) @ query.astype(np.float64)
    assert {hit.id for hit in hits} == {f"id-{i:03d}" for i in np.flatnonzero(scores >= 2.0)}
    with pytest.raises(medkg.VectorValidationError, match="finite") as caught:
        client.search(studies, query, score_threshold=float("nan"))
    assert caught.value.field_violations[0][0] == "score_threshold"


def deep(levels: int) -> Filter:
    filter_: Filter = Equals("year", 2003)
    for _ in range(levels - 1):
        filter_ = Not(filter_)
    return filter_


@pytest.mark.parametrize(
    ("filter_", "path"),
    [
        (Equals("author", "x"), "filter.equals.field"),
        (And(Equals("year", 1), ~Equals("study.arms", 1)), "filter.and[1].not.equals.field"),
        (And(), "filter.and"),
        (In("year", []), "filter.in.values"),
        (Range("year"), "filter.range"),
        (In("year", [1, None]), "filter.in.values[1]"),  # type: ignore[list-item]
        (Equals("year", 2**70), "filter.equals.value"),
        (Equals(3, 2020), "filter.equals.field"),  # type: ignore[arg-type]
        (Or(Equals("year", 1), {"year": 1}), "filter.or[1]"),  # type: ignore[arg-type]
        (deep(33), "filter" + ".not" * 32),
        (deep(1_000), "filter" + ".not" * 32),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_filter_is_named_by_its_path(
    client: medkg.VectorClient, studies: str, filter_: Filter, path: str
) -> None:
    with pytest.raises(medkg.VectorValidationError) as searched:
        client.search(studies, VECTORS[0], filter=filter_)
    with pytest.raises(medkg.VectorValidationError) as counted:
        client.count(studies, filter_)
    for caught in (searched, counted):
        assert caught.value.field_violations[0][0] == path


def test_filters_are_values(client: medkg.VectorClient, studies: str) -> None:
    filter_ = Equals("year", 2003) & ~In("study.type", ("trial",))
    assert filter_ == And(Equals("year", 2003), Not(In("study.type", ("trial",))))
    assert len({filter_, Equals("year", 2003) & ~In("study.type", ("trial",))}) == 1
    assert client.count(studies, deep(32)) == COUNT - client.count(studies, Equals("year", 2003))
