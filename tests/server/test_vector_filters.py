"""Filters, thresholds, fetch and count on the raw wire: what matches, and what is refused by which name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .test_vectors import DIMENSION, ONLY_VECTOR, Vectors, exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Filters:
    """The wire's filters, briefly."""

    def __init__(self, wire: Any) -> None:
        self.w = wire.vector

    def value(self, value: object) -> Any:
        # A bool is an int to Python, so it comes first.
        kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "text"))
        name = next(name for kind, name in kinds if isinstance(value, kind))
        return self.w.FilterValue(**{name: value})

    def equals(self, field: str, value: object) -> Any:
        return self.w.Filter(equals=self.w.FilterEquals(field=field.split("."), value=self.value(value)))

    def one_of(self, field: str, values: list[Any]) -> Any:
        condition = self.w.FilterIn(field=field.split("."), values=[self.value(value) for value in values])
        return self.w.Filter(**{"in": condition})

    def between(self, field: str, **bounds: Any) -> Any:
        values = {name: self.value(value) for name, value in bounds.items()}
        return self.w.Filter(range=self.w.FilterRange(field=field.split("."), **values))

    def exists(self, field: str) -> Any:
        return self.w.Filter(exists=self.w.FilterExists(field=field.split(".")))

    def both(self, *filters: Any) -> Any:
        return self.w.Filter(**{"and": self.w.FilterList(filters=filters)})

    def either(self, *filters: Any) -> Any:
        return self.w.Filter(**{"or": self.w.FilterList(filters=filters)})

    def inverse(self, inner: Any) -> Any:
        return self.w.Filter(**{"not": inner})

    def nested(self, depth: int) -> bytes:
        """A filter so deep, of `not`s, as bytes: the Python library itself refuses to nest that deep."""
        filter_ = self.equals("year", 2020).SerializeToString()
        for _ in range(depth - 1):
            filter_ = field(7, filter_)
        return filter_


def field(number: int, message: bytes) -> bytes:
    """A message as a field of another one."""
    size, length = len(message), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + message


@pytest.fixture
def filters(wire: Any) -> Filters:
    return Filters(wire)


@pytest.fixture
def vectors(wire: Any, channel: grpc.Channel) -> Vectors:
    return Vectors(wire, channel)


PAYLOADS: list[dict[str, Any] | None] = [
    {"year": 2018, "type": "trial", "study": {"arms": 2}, "date": "2018-03-01"},
    {"year": 2020, "type": "review", "tags": ["kidney", "heart"], "date": "2020-11-30"},
    {"year": 2020.0, "type": "letter", "tags": ["heart"], "retracted": False},
    {"year": "2020", "type": "trial", "study": {"arms": 3.5}, "retracted": True},
    {"year": None, "type": ["trial", "review"], "date": "2021-01-01"},
    None,
]


@pytest.fixture
def studies(vectors: Vectors) -> Iterator[str]:
    vectors.create("studies", "DOT", 2)
    rows = np.asarray([[index + 1, 0] for index in range(len(PAYLOADS))])
    texts = ["" if payload is None else json.dumps(payload) for payload in PAYLOADS]
    vectors.upsert("studies", [str(index) for index in range(len(PAYLOADS))], rows, texts)
    yield "studies"
    assert vectors.points("studies") == len(PAYLOADS), "state changed"
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="studies"))


def search(vectors: Vectors, name: str, query: np.ndarray, k: int, **fields: Any) -> list[tuple[str, float]]:
    request = vectors.w.SearchVectorsRequest(collection=name, queries=vectors.tensor(query), k=k, **fields)
    [found] = vectors.call("SearchVectors", request).hits
    return [(point.id, point.score) for point in found.points]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda f: f.equals("year", 2020), "12"),
        (lambda f: f.equals("year", "2020"), "3"),
        (lambda f: f.one_of("type", ["trial", "letter"]), "0234"),
        (lambda f: f.equals("tags", "heart"), "12"),
        (lambda f: f.equals("retracted", value=False), "2"),
        (lambda f: f.equals("retracted", 0), ""),
        (lambda f: f.between("year", gt=2018), "12"),
        (lambda f: f.between("year", gte=2018.0, lt=2020), "0"),
        (lambda f: f.between("study.arms", gt=2, lte=3.5), "3"),
        (lambda f: f.between("date", gte="2020", lt="2021"), "1"),
        (lambda f: f.exists("year"), "0123"),
        (lambda f: f.exists("study"), "03"),
        (lambda f: f.inverse(f.exists("year")), "45"),
        (lambda f: f.both(f.equals("type", "trial"), f.inverse(f.equals("year", 2018))), "34"),
        (lambda f: f.either(f.equals("year", 2018), f.equals("study.arms", 3.5), f.equals("tags", "kidney")), "013"),
        (lambda f: f.both(f.equals("year", 2020), f.equals("type", "trial")), ""),
    ],
)
def test_what_matches_is_searched_and_counted(
    vectors: Vectors, filters: Filters, studies: str, make: Callable[[Filters], Any], found: str
) -> None:
    filter_ = make(filters)
    hits = search(vectors, studies, np.asarray([[1.0, 0.0]]), 10, filter=filter_)
    assert [point for point, _ in hits] == sorted(found, reverse=True), "the largest score first"
    count = vectors.w.CountVectorsRequest(collection=studies, filter=filter_)
    assert vectors.call("CountVectors", count).count == len(found)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda f: f.w.Filter(), "filter"),
        (lambda f: f.both(f.equals("year", 1), f.inverse(f.equals("nobody", 1))), "filter.and[1].not.equals.field"),
        (lambda f: f.equals("study.legs", 1), "filter.equals.field"),
        (lambda f: f.w.Filter(exists=f.w.FilterExists()), "filter.exists.field"),
        (lambda f: f.exists("a.b.c.d.e.f.g.h.i"), "filter.exists.field"),
        (lambda f: f.exists("x" * 257), "filter.exists.field"),
        (lambda f: f.w.Filter(equals=f.w.FilterEquals(field=["year"])), "filter.equals.value"),
        (lambda f: f.either(f.equals("year", float("nan"))), "filter.or[0].equals.value"),
        (lambda f: f.equals("type", "x" * 1025), "filter.equals.value"),
        (lambda f: f.one_of("year", []), "filter.in.values"),
        (lambda f: f.one_of("year", [1] * 4097), "filter.in.values"),
        (lambda f: f.one_of("year", [1, float("inf")]), "filter.in.values[1]"),
        (lambda f: f.between("year"), "filter.range"),
        (lambda f: f.between("year", gt=1, gte=1), "filter.range"),
        (lambda f: f.between("year", lt=1, lte=1), "filter.range"),
        (lambda f: f.between("year", gt=1, lt="x"), "filter.range"),
        (lambda f: f.between("year", gt=True), "filter.range.gt"),
        (lambda f: f.both(), "filter.and"),
        (lambda f: f.both(*[f.equals("year", 1)] * 256), "filter.and[255]"),
        (lambda f: f.both(*[f.exists(f"f{index}") for index in range(17)]), "filter"),
    ],
)
def test_a_bad_filter_is_named_by_its_path(
    vectors: Vectors, filters: Filters, studies: str, refused: Any, make: Callable[[Filters], Any], field: str
) -> None:
    filter_ = make(filters)
    count = vectors.w.CountVectorsRequest(collection=studies, filter=filter_)
    search = vectors.w.SearchVectorsRequest(
        collection=studies, queries=vectors.tensor(np.ones((1, 2))), k=1, filter=filter_
    )
    for stub, request in ((vectors.stub.CountVectors, count), (vectors.stub.SearchVectors, search)):
        refusal = refused(stub, request)
        assert (refusal.code, refusal.reason, refusal.fields) == (INVALID, "INVALID_FIELD", [field])


def test_an_unknown_filter_field_is_said_by_name(
    vectors: Vectors, filters: Filters, studies: str, refused: Any
) -> None:
    request = vectors.w.CountVectorsRequest(collection=studies, filter=filters.equals("study.legs", 1))
    message = refused(vectors.stub.CountVectors, request).message
    assert "unknown filter field" in message
    assert '["study", "legs"]' in message


@pytest.mark.parametrize(("method", "number"), [("CountVectors", 2), ("SearchVectors", 5)])
@pytest.mark.parametrize(
    ("depth", "path"), [(33, "filter" + ".not" * 32), (60, "filter" + ".not" * 32), (1000, "filter")]
)
def test_a_deep_filter_is_refused_and_the_server_lives_on(
    vectors: Vectors, filters: Filters, studies: str, refused: Any, depth: int, path: str, method: str, number: int
) -> None:
    plain = vectors.w.CountVectorsRequest(collection=studies)
    if method == "SearchVectors":
        plain = vectors.w.SearchVectorsRequest(collection=studies, queries=vectors.tensor(np.ones((1, 2))), k=1)
    request = plain.SerializeToString() + field(number, filters.nested(depth))
    refusal = refused(vectors.channel.unary_unary(f"/medkg.v1.VectorService/{method}"), request)
    assert (refusal.code, refusal.reason, refusal.fields) == (INVALID, "INVALID_FIELD", [path])
    assert "nested too deep" in refusal.message


def test_a_filter_of_the_largest_depth_is_served(vectors: Vectors, filters: Filters, studies: str) -> None:
    filter_ = vectors.w.Filter.FromString(filters.nested(32))
    request = vectors.w.CountVectorsRequest(collection=studies, filter=filter_)
    assert vectors.call("CountVectors", request).count == len(PAYLOADS) - 2, "31 times not"


def test_a_collection_without_points_matches_nothing(vectors: Vectors, filters: Filters) -> None:
    vectors.create("none", "DOT", 2)
    filter_ = filters.equals("year", 2020)
    assert search(vectors, "none", np.ones((1, 2)), 5, filter=filter_) == []
    assert vectors.call("CountVectors", vectors.w.CountVectorsRequest(collection="none", filter=filter_)).count == 0
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="none"))


@pytest.mark.parametrize("share", [2, 97])
@pytest.mark.parametrize("metric", ["COSINE", "DOT", "L2"])
def test_a_filtered_search_equals_numpy_in_float64(vectors: Vectors, filters: Filters, metric: str, share: int) -> None:
    """Where few points match their rows are gathered; where most do their scores are."""
    random = np.random.default_rng(11)
    rows = random.normal(size=(3000, DIMENSION)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = random.normal(size=(7, DIMENSION)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    percent = random.integers(0, 100, size=len(rows))
    name = f"filtered-{metric.lower()}-{share}"
    vectors.create(name, metric)
    ids = [f"p{index:05d}" for index in range(len(rows))]
    vectors.upsert(name, ids, rows, [json.dumps({"percent": int(value)}) for value in percent])
    matching = np.flatnonzero(percent < share)
    request = vectors.w.SearchVectorsRequest(
        collection=name, queries=vectors.tensor(queries), k=40, filter=filters.between("percent", lt=share)
    )
    wanted = exact(metric, queries, rows)[:, matching]
    for found, scores in zip(vectors.call("SearchVectors", request).hits, wanted, strict=True):
        order = np.argsort(-scores, kind="stable")[: len(found.points)]
        assert len(found.points) == min(40, len(matching))
        for rank, point in enumerate(found.points):
            assert abs(point.score - scores[order[rank]]) < 1e-5
            own = scores[np.searchsorted(matching, int(point.id[1:]))]
            # The same point, or one whose score float64 hardly tells apart.
            assert point.id == ids[matching[order[rank]]] or abs(own - scores[order[rank]]) <= 1e-6
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection=name))


def test_filters_see_writes_deletes_and_what_a_restart_read(
    wire: Any, filters: Filters, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    vectors.create("moving", "DOT", 2)

    def count(value: int) -> int:
        request = vectors.w.CountVectorsRequest(collection="moving", filter=filters.equals("n", value))
        return int(vectors.call("CountVectors", request).count)

    ids = [f"p{index}" for index in range(100)]
    vectors.upsert("moving", ids, np.ones((100, 2)), [f'{{"n": {index % 4}}}' for index in range(100)])
    assert [count(value) for value in range(5)] == [25, 25, 25, 25, 0]
    vectors.upsert("moving", ["p0", "p1", "new"], np.ones((3, 2)), ['{"n": 4}', "", '{"n": 4}'])
    vectors.call("DeleteVectors", vectors.w.DeleteVectorsRequest(collection="moving", ids=ids[2:52]))
    expected = [sum(index % 4 == value for index in range(52, 100)) for value in range(4)]
    assert [count(value) for value in range(5)] == [*expected, 2]
    assert {point for point, _ in search(vectors, "moving", np.ones((1, 2)), 9, filter=filters.equals("n", 4))} == {
        "p0",
        "new",
    }
    server.stop()
    server.start()
    vectors = Vectors(wire, open_channel(server))
    assert [count(value) for value in range(5)] == [*expected, 2]
    server.stop()


def test_fields_asked_for_first_while_points_are_written_miss_none(vectors: Vectors, filters: Filters) -> None:
    vectors.create("race", "DOT", 2)
    batches, size, fields = 40, 50, 8
    payload = json.dumps({f"f{index}": True for index in range(fields)})
    written = [0]

    def write() -> None:
        for batch in range(batches):
            ids = [f"{batch}-{index}" for index in range(size)]
            vectors.upsert("race", ids, np.ones((size, 2)), [payload] * size)
            written[0] += size

    def count(index: int) -> int:
        request = vectors.w.CountVectorsRequest(collection="race", filter=filters.equals(f"f{index}", value=True))
        return int(vectors.call("CountVectors", request).count)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        rounds = 0
        while not writer.done() or rounds < fields:
            before = written[0]
            assert before <= count(rounds % fields) <= batches * size
            rounds += 1
        writer.result()
    assert [count(index) for index in range(fields)] == [batches * size] * fields
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="race"))


@pytest.mark.parametrize(
    ("metric", "threshold", "found"),
    [("DOT", 3.0, "543"), ("DOT", 7.0, ""), ("L2", -2.0, "0123"), ("L2", 0.0, "1"), ("COSINE", 0.5, "543210")],
)
def test_points_below_the_threshold_are_left_out(vectors: Vectors, metric: str, threshold: float, found: str) -> None:
    vectors.create("steps", metric, 1)
    # Scores for the query 1: 0.5, 1, 2, 3, 4, 5 under dot, minus 0.5, 0, 1, 2, 3, 4 under L2.
    vectors.upsert("steps", list("012345"), np.asarray([[0.5], [1], [2], [3], [4], [5]]))
    hits = search(vectors, "steps", np.ones((1, 1)), 10, score_threshold=threshold)
    assert {point for point, _ in hits} == set(found)
    assert search(vectors, "steps", np.ones((1, 1)), 2, score_threshold=threshold) == hits[:2]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="steps"))


@pytest.mark.parametrize(("metric", "threshold"), [("DOT", float("nan")), ("COSINE", float("inf")), ("L2", 0.5)])
def test_a_threshold_that_cannot_be_meant_is_refused(
    vectors: Vectors, refused: Any, metric: str, threshold: float
) -> None:
    vectors.create("steps", metric, 1)
    request = vectors.w.SearchVectorsRequest(
        collection="steps", queries=vectors.tensor(np.ones((1, 1))), k=1, score_threshold=threshold
    )
    assert refused(vectors.stub.SearchVectors, request).fields == ["score_threshold"]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="steps"))


def test_the_largest_k_takes_the_smallest_ids_of_equal_scores(vectors: Vectors) -> None:
    vectors.create("ties", "DOT", 2)
    ids = [f"p{index:05d}" for index in np.random.default_rng(5).permutation(12_000)]
    vectors.upsert("ties", ids, np.ones((12_000, 2)))
    found = search(vectors, "ties", np.ones((1, 2)), 10_000)
    assert [point for point, _ in found] == sorted(ids)[:10_000]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="ties"))


def test_points_are_fetched_as_they_were_written(vectors: Vectors, refused: Any) -> None:
    vectors.create("fetch", dimension=2)
    rows = np.asarray([[3.0, 4.0], [0.1, -7.25]], dtype="<f4")
    vectors.upsert("fetch", ["a", "b"], rows, ['{"n": 9007199254740993}', ""])
    request = vectors.w.FetchVectorsRequest(
        collection="fetch", ids=["no", "b", "a", "b"], with_vectors=True, with_payload=True
    )
    answer = vectors.call("FetchVectors", request)
    assert (list(answer.ids), list(answer.missing)) == (["b", "a", "b"], ["no"])
    assert list(answer.payloads) == ["", '{"n": 9007199254740993}', ""]
    assert list(answer.vectors.shape) == [3, 2]
    assert answer.vectors.data == rows[[1, 0, 1]].tobytes(), "not scaled to unit length"
    bare = vectors.call("FetchVectors", vectors.w.FetchVectorsRequest(collection="fetch", ids=["a"]))
    assert (list(bare.ids), bare.HasField("vectors"), list(bare.payloads)) == (["a"], False, [])
    for ids in ([], ["a"] * 65_537):
        request = vectors.w.FetchVectorsRequest(collection="fetch", ids=ids)
        assert refused(vectors.stub.FetchVectors, request).fields == ["ids"]
    vectors.upsert("fetch", ["large"], rows[:1], [json.dumps({"x": "y" * 65_000})])
    request = vectors.w.FetchVectorsRequest(collection="fetch", ids=["large"] * 400, with_payload=True)
    refusal = refused(vectors.stub.FetchVectors, request)
    assert (refusal.code, refusal.fields) == (INVALID, ["ids"])
    assert vectors.call("CountVectors", vectors.w.CountVectorsRequest(collection="fetch")).count == 3
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="fetch"))
