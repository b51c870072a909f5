"""One contract for the three homes of `medkg.vectors.VectorStore`: gpu-server, LanceDB, Milvus."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from medkg.filters import And, Equals, Exists, Filter, In, Not, Or, Range
from medkg.vectors import GpuServerStore, LanceStore, MilvusStore, VectorStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

    Open = Callable[[str], VectorStore]

HOMES = ("gpu-server", "lance", "milvus")
METRICS = ("cosine", "dot", "l2")
COUNT, WIDTH = 1_500, 24


@pytest.fixture(scope="module", params=HOMES)
def open_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Opens the store of a tenant in one of the homes; all stores of a home share its place."""
    opened: list[VectorStore] = []
    run = uuid.uuid4().hex[:8]
    if request.param == "gpu-server":
        server: LocalServer = request.getfixturevalue("server")
        client = medkg.VectorClient(address=server.address)
    elif request.param == "lance":
        folder = tmp_path_factory.mktemp("lance")
    else:
        # milvus-lite lets one client at a time write to a file, so the tenants share the path and the process.
        file = tmp_path_factory.mktemp("milvus") / "vectors.db"

    def start(tenant: str) -> VectorStore:
        name = f"{tenant}-{run}"
        if request.param == "gpu-server":
            store: VectorStore = GpuServerStore(client, tenant=name)
        elif request.param == "lance":
            store = LanceStore(folder, tenant=name)
        else:
            store = MilvusStore(file, tenant=name)
        opened.append(store)
        return store

    yield start
    for store in opened:
        for info in store.list():
            store.drop(info.name)
    for store in opened:
        store.close()


@pytest.fixture(scope="module")
def store(open_home: Open) -> VectorStore:
    return open_home("contract")


@pytest.fixture
def collection(store: VectorStore) -> Iterator[str]:
    name = f"c.{uuid.uuid4().hex}_x-Y"
    store.create(name, 4)
    yield name
    if name in [info.name for info in store.list()]:
        store.drop(name)


def field_of(caught: pytest.ExceptionInfo[medkg.VectorValidationError]) -> str:
    return caught.value.field_violations[0][0]


def random(count: int, seed: int, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def exact(queries: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(a[:, None, :] - b[None, :, :], axis=2)
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


PAYLOADS: list[dict[str, Any] | None] = [
    {
        "year": 2000 + i % 25,
        "study": {"type": ["trial", "review", "letter"][i % 3], "arms": [i % 2, "a"]},
        "v1.0": i % 2 == 0,
        "score": i / 7,
        "note": None if i % 4 else "é👩‍⚕️ 'quoted' \\ \"twice\"",
        "large": 2**53 + i,
    }
    if i % 5
    else None
    for i in range(COUNT)
]
IDS = [f"id-{i:05d}" for i in range(COUNT)]


@pytest.fixture(scope="module", params=METRICS)
def filled(request: pytest.FixtureRequest, store: VectorStore) -> Iterator[tuple[str, str, np.ndarray]]:
    """A collection of each metric with random points: its name, its metric, its vectors."""
    metric, vectors = request.param, random(COUNT, 1)
    name = f"filled-{metric}"
    store.create(name, WIDTH, metric)
    written = store.upsert(name, IDS, vectors, PAYLOADS)
    assert (written.inserted, written.replaced) == (COUNT, 0)
    yield name, metric, vectors
    assert store.drop(name) == COUNT


Filled = tuple[str, str, np.ndarray]


class TestSearch:
    def test_scores_and_order_are_those_of_float64(self, store: VectorStore, filled: Filled) -> None:
        name, metric, vectors = filled
        queries = random(20, 2)
        wanted = exact(queries, vectors, metric)
        for k in (1, 10, 300):
            for hits, row in zip(store.search(name, queries, k), wanted, strict=True):
                order = np.argsort(-row, kind="stable")[:k]
                assert len(hits) == k
                np.testing.assert_allclose([hit.score for hit in hits], row[order], atol=2e-5)
                # Neighbours nearer to each other than float32 can tell may change places.
                np.testing.assert_allclose([row[IDS.index(hit.id)] for hit in hits], row[order], atol=2e-5)
                assert all(hit.payload == PAYLOADS[IDS.index(hit.id)] for hit in hits[:5])

    def test_more_than_there_are_gives_all(self, store: VectorStore, filled: Filled) -> None:
        name, _, vectors = filled
        [hits] = store.search(name, vectors[3], 10_000, with_payload=False)
        assert sorted(hit.id for hit in hits) == IDS
        assert {hit.payload for hit in hits} == {None}
        ranks = [(-hit.score, hit.id) for hit in hits]
        assert ranks == sorted(ranks)

    def test_the_vectors_themselves_are_nearest(self, store: VectorStore, filled: Filled) -> None:
        name, metric, vectors = filled
        if metric == "dot":
            return
        best = store.search(name, vectors[:10], 1)
        assert [hits[0].id for hits in best] == IDS[:10]
        assert [hits[0].score for hits in best] == pytest.approx([1.0 if metric == "cosine" else 0.0] * 10, abs=1e-5)

    def test_points_below_the_threshold_are_left_out(self, store: VectorStore, filled: Filled) -> None:
        name, metric, vectors = filled
        row = exact(vectors[:1], vectors, metric)[0]
        ordered = np.sort(row)[::-1]
        threshold = float((ordered[40] + ordered[41]) / 2)
        wanted = {IDS[i] for i in np.flatnonzero(row >= threshold)}
        for filter_ in (None, Exists("year") | Not(Exists("year"))):
            [hits] = store.search(name, vectors[0], 1_000, filter=filter_, score_threshold=threshold)
            assert {hit.id for hit in hits} == wanted

    @pytest.mark.parametrize("metric", METRICS)
    def test_ties_are_ordered_by_id_also_where_they_are_cut(self, store: VectorStore, metric: str) -> None:
        name = f"ties-{metric}"
        store.create(name, 4, metric)  # type: ignore[arg-type]
        order = np.random.default_rng(7).permutation(200)
        vectors = np.tile(np.array([0.3, -0.1, 0.7, 0.2], np.float32), (200, 1))
        vectors[order < 3] = [0.1, 0.9, 0.0, -0.5]
        ids = [f"t{i:03d}" for i in order]
        store.upsert(name, ids, vectors)
        expected = sorted(one for one, i in zip(ids, order, strict=True) if i >= 3)
        for k in (1, 5, 30, 190):
            [hits] = store.search(name, vectors[order >= 3][0], k)
            assert [hit.id for hit in hits] == expected[:k]

    def test_an_empty_collection_has_no_hits(self, store: VectorStore, collection: str) -> None:
        assert store.search(collection, random(2, 1, 4), 3) == [[], []]
        assert store.search(collection, random(1, 1, 4), 3, filter=Equals("no.such", 1)) == [[]]
        assert store.count(collection) == store.count(collection, Exists("no.such")) == 0


FILTERS: list[tuple[Filter, Callable[[dict[str, Any]], bool]]] = [
    (Equals("year", 2003), lambda p: p["year"] == 2003),
    (Equals("year", 2003.0), lambda p: p["year"] == 2003),
    (Equals("study.arms", 1), lambda p: 1 in p["study"]["arms"]),
    (Equals("study.arms", value=True), lambda _: False),
    (Equals(["v1.0"], value=True), lambda p: p["v1.0"]),
    (In("study.type", ["trial", "letter", 3]), lambda p: p["study"]["type"] != "review"),
    (Range("year", gte=2010, lt=2012.5), lambda p: 2010 <= p["year"] < 2012.5),
    (Range("study.type", gt="m"), lambda p: p["study"]["type"] > "m"),
    (Range("score", gt=10), lambda p: p["score"] > 10),
    (Equals("large", 2**53 + 1), lambda p: p["large"] == 2**53 + 1),
    (Equals("note", "é👩‍⚕️ 'quoted' \\ \"twice\""), lambda p: p["note"] is not None),
    (Exists("note"), lambda p: p["note"] is not None),
    (Exists("study"), lambda _: True),
    (Equals("study", "trial"), lambda _: False),
    (
        And(Range("year", gt=2010), ~Equals("study.type", "trial")),
        lambda p: p["year"] > 2010 and p["study"]["type"] != "trial",
    ),
    (Or(Equals("year", 2001), And(Equals("year", 2002), Exists("study.type"))), lambda p: p["year"] in {2001, 2002}),
]


class TestFilters:
    @pytest.mark.parametrize("index", range(len(FILTERS)))
    def test_a_filter_is_decided_before_the_nearest_are_taken(
        self, store: VectorStore, filled: Filled, index: int
    ) -> None:
        name, metric, vectors = filled
        filter_, matches = FILTERS[index]
        keep = [i for i, payload in enumerate(PAYLOADS) if payload is not None and matches(payload)]
        assert store.count(name, filter_) == len(keep)
        assert store.count(name, ~filter_) == COUNT - len(keep)
        [hits] = store.search(name, vectors[9], 15, filter=filter_)
        row = exact(vectors[9:10], vectors[keep], metric)[0]
        assert [hit.id for hit in hits] == [IDS[keep[i]] for i in np.argsort(-row, kind="stable")[:15]]

    @pytest.mark.parametrize(
        ("filter_", "path"),
        [
            (Equals("author", "x"), "filter.equals.field"),
            (And(Equals("year", 1), ~Equals("study.no", 1)), "filter.and[1].not.equals.field"),
            (And(), "filter.and"),
            (In("year", []), "filter.in.values"),
            (Range("year"), "filter.range"),
            (Range("year", gt=1, gte=2), "filter.range"),
            (Range("year", gt=1, lt="x"), "filter.range"),
            (Range("year", gt=True), "filter.range.gt"),
            (In("year", [1, None]), "filter.in.values[1]"),  # type: ignore[list-item]
            (Equals("year", 2**70), "filter.equals.value"),
            (Equals("year", float("nan")), "filter.equals.value"),
            (Equals("year", "x" * 1_025), "filter.equals.value"),
            (Equals(3, 2020), "filter.equals.field"),  # type: ignore[arg-type]
            (Equals(["x"] * 9, 1), "filter.equals.field"),
            (Or(Equals("year", 1), {"year": 1}), "filter.or[1]"),  # type: ignore[arg-type]
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_bad_filter_is_named_by_its_path(
        self, store: VectorStore, filled: Filled, filter_: Filter, path: str
    ) -> None:
        name, _, vectors = filled
        with pytest.raises(medkg.VectorValidationError) as searched:
            store.search(name, vectors[0], filter=filter_)
        with pytest.raises(medkg.VectorValidationError) as counted:
            store.count(name, filter_)
        assert (field_of(searched), field_of(counted)) == (path, path)

    def test_a_filter_has_its_limits(self, store: VectorStore, filled: Filled) -> None:
        deep: Filter = Equals("year", 2003)
        for _ in range(32):
            deep = Not(deep)
        wide = Or(*[Equals("year", i) for i in range(256)])
        fields = Or(*[Exists(f"f{i}") for i in range(17)])
        for filter_, path in ((deep, "filter" + ".not" * 32), (wide, "filter.or[255]"), (fields, "filter")):
            with pytest.raises(medkg.VectorValidationError) as caught:
                store.count(filled[0], filter_)
            assert field_of(caught) == path


class TestPoints:
    def test_what_is_written_is_read(self, store: VectorStore, collection: str) -> None:
        ids = ["it's", 'q"x"', "back\\slash", "é👩‍⚕️", "{x}", "%_", "x" * 512]
        vectors = random(len(ids), 4, 4)
        payloads: list[dict[str, Any] | None] = [
            None,
            {},
            {"a": [1, None, {"b": 1.5}]},
            {"é": "\\'\""},
            None,
            {"n": 2**60},
        ]
        payloads.append({"text": "x" * (64 * 1024 - len('{"text": ""}'))})
        assert store.upsert(collection, ids, vectors, payloads) == medkg.UpsertResult(len(ids), 0)
        found = store.fetch(collection, [ids[4], "nobody", *ids[:4], *ids[5:]])
        assert (found.ids, found.missing) == ([ids[4], *ids[:4], *ids[5:]], ["nobody"])
        order = [4, 0, 1, 2, 3, 5, 6]
        assert found.payloads == [payloads[i] for i in order]
        assert found.vectors is not None
        np.testing.assert_array_equal(found.vectors, vectors[order])
        bare = store.fetch(collection, ["nobody"], with_vectors=False, with_payload=False)
        assert (bare.ids, bare.vectors, bare.payloads, bare.missing) == ([], None, None, ["nobody"])
        assert store.delete(collection, [ids[0], ids[2], "nobody"]) == 2
        assert store.count(collection) == 5
        assert store.upsert(collection, ids[:2], vectors[2:4]) == medkg.UpsertResult(1, 1)
        again = store.fetch(collection, ids[:2])
        assert again.payloads == [None, None]
        np.testing.assert_array_equal(again.vectors, vectors[2:4])
        assert store.count(collection) == 6
        [hits] = store.search(collection, vectors[2], 1)
        assert hits[0].id == ids[0]

    def test_thousands_are_written_at_once(self, store: VectorStore, collection: str) -> None:
        ids = [f"{i}" for i in range(5_000)]
        vectors = random(5_000, 5, 4)
        assert store.upsert(collection, ids, vectors).inserted == 5_000
        found = store.fetch(collection, ids[::-1], with_payload=False)
        np.testing.assert_array_equal(found.vectors, vectors[::-1])
        assert store.count(collection) == 5_000
        assert store.delete(collection, ids[:4_000]) == 4_000
        [hits] = store.search(collection, vectors[0], 10_000)
        assert {hit.id for hit in hits} == set(ids[4_000:])

    @pytest.mark.parametrize(
        ("ids", "vectors", "payloads", "field"),
        [
            ([], np.empty((0, 4), np.float32), None, "ids"),
            (["a", "b", "a"], random(3, 1, 4), None, "ids[2]"),
            (["a", ""], random(2, 1, 4), None, "ids[1]"),
            (["a", "x" * 513], random(2, 1, 4), None, "ids[1]"),
            (["a\n"], random(1, 1, 4), None, "ids[0]"),
            (["a"], random(1, 1, 5), None, "vectors.shape"),
            (["a"], random(1, 1, 4).astype(np.float64), None, "vectors"),
            (["a"], random(1, 1, 4).tolist(), None, "vectors"),
            (["a", "b"], random(4, 1, 4)[::2], None, "vectors"),
            (["a", "b"], random(3, 1, 4), None, "vectors"),
            (["a", "b"], np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]], np.float32), None, "vectors[1]"),
            (["a"], np.array([[1, 2, 3, np.inf]], np.float32), None, "vectors[0]"),
            (["a"], np.array([[1, 2, 3, 1e20]], np.float32), None, "vectors[0]"),
            (["a", "b"], np.array([[1, 2, 3, 4], [0, 0, 0, 0]], np.float32), None, "vectors[1]"),
            (["a", "b"], random(2, 1, 4), [{}], "payloads"),
            (["a", "b"], random(2, 1, 4), [None, {"x": float("nan")}], "payloads[1]"),
            (["a"], random(1, 1, 4), ["text"], "payloads[0]"),
            (["a"], random(1, 1, 4), [{"x": "y" * 65_536}], "payloads[0]"),
        ],
    )
    def test_a_bad_point_is_named_and_nothing_is_written(
        self, store: VectorStore, collection: str, ids: Any, vectors: Any, payloads: Any, field: str
    ) -> None:
        with pytest.raises(medkg.VectorValidationError) as caught:
            store.upsert(collection, ids, vectors, payloads)
        assert (field_of(caught), caught.value.http_status) == (field, 400)
        assert store.count(collection) == 0

    def test_a_zero_vector_is_fine_where_it_has_a_meaning(self, store: VectorStore) -> None:
        for metric in ("dot", "l2"):
            store.create(f"zero-{metric}", 4, metric)
            store.upsert(f"zero-{metric}", ["zero"], np.zeros((1, 4), np.float32))
            [[hit]] = store.search(f"zero-{metric}", np.zeros(4, np.float32))
            assert (hit.id, hit.score) == ("zero", 0.0)

    @pytest.mark.parametrize(
        ("queries", "options", "field"),
        [
            (random(1, 1, 4), {"k": 0}, "k"),
            (random(1, 1, 4), {"k": 10_001}, "k"),
            (random(21, 1, 4), {"k": 10_000}, "k"),
            (random(1, 1, 3), {}, "queries.shape"),
            (np.zeros((1, 4), np.float32), {}, "queries[0]"),
            (np.full((2, 4), np.nan, np.float32), {}, "queries[0]"),
            (random(1, 1, 4), {"score_threshold": float("nan")}, "score_threshold"),
        ],
    )
    def test_a_bad_query_is_named(
        self, store: VectorStore, collection: str, queries: Any, options: Any, field: str
    ) -> None:
        with pytest.raises(medkg.VectorValidationError) as caught:
            store.search(collection, queries, **options)
        assert field_of(caught) == field

    def test_ids_to_read_or_remove_are_not_empty(self, store: VectorStore, collection: str) -> None:
        for call in (store.fetch, store.delete):
            with pytest.raises(medkg.VectorValidationError) as caught:
                call(collection, [])
            assert field_of(caught) == "ids"


class TestCollections:
    def test_a_collection_is_made_once_or_accepted(self, store: VectorStore, collection: str) -> None:
        with pytest.raises(medkg.AlreadyExistsError) as caught:
            store.create(collection, 4)
        assert caught.value.http_status == 409
        accepted = store.create(collection, 4, exist_ok=True)
        assert (accepted.name, accepted.dimension, accepted.metric, accepted.created) == (
            collection,
            4,
            "cosine",
            False,
        )
        for dimension, metric in ((5, "cosine"), (4, "dot")):
            with pytest.raises(medkg.AlreadyExistsError):
                store.create(collection, dimension, metric, exist_ok=True)  # type: ignore[arg-type]
        assert store.create("other.one", 7, "l2").created
        listed = store.list()
        assert [info.name for info in listed] == sorted(info.name for info in listed)
        assert medkg.CollectionInfo("other.one", 7, "l2", "f32", created=False) in listed
        assert store.drop("other.one") == 0
        with pytest.raises(medkg.CollectionNotFoundError):
            store.drop("other.one")

    @pytest.mark.parametrize(
        ("name", "dimension", "metric", "field"),
        [
            ("../up", 4, "cosine", "collection.name"),
            ("", 4, "cosine", "collection.name"),
            ("x" * 128, 4, "cosine", "collection.name"),
            ("x", 0, "cosine", "collection.dimension"),
            ("x", 8_193, "cosine", "collection.dimension"),
            ("x", 4, "manhattan", "metric"),
        ],
    )
    def test_bad_properties_are_named(
        self, store: VectorStore, name: str, dimension: int, metric: Any, field: str
    ) -> None:
        with pytest.raises(medkg.VectorValidationError) as caught:
            store.create(name, dimension, metric)
        assert field_of(caught) == field

    def test_names_that_differ_in_case_or_marks_are_different(self, store: VectorStore) -> None:
        names = ["a_b", "a.b", "a-b", "A_b", "a_ub", "a__b"]
        for width, name in enumerate(names, start=2):
            store.create(name, width)
        found = {info.name: info.dimension for info in store.list() if info.name in names}
        assert found == {name: width for width, name in enumerate(names, start=2)}

    def test_another_tenants_collections_do_not_exist(
        self, store: VectorStore, collection: str, open_home: Open
    ) -> None:
        stranger = open_home("stranger")
        store.upsert(collection, ["a"], random(1, 1, 4))
        calls: list[Callable[[], object]] = [
            lambda: stranger.search(collection, random(1, 1, 4)),
            lambda: stranger.upsert(collection, ["a"], random(1, 1, 4)),
            lambda: stranger.fetch(collection, ["a"]),
            lambda: stranger.delete(collection, ["a"]),
            lambda: stranger.count(collection),
            lambda: stranger.drop(collection),
        ]
        for call in calls:
            with pytest.raises(medkg.CollectionNotFoundError) as caught:
                call()
            assert (caught.value.tenant, caught.value.http_status) == (stranger.tenant, 404)
        assert stranger.list() == []
        assert stranger.create(collection, 9).created
        assert (store.count(collection), stranger.count(collection)) == (1, 0)
        assert stranger.drop(collection) == 0
        assert store.count(collection) == 1


def sparse_rows(rows: list[dict[int, float]]) -> medkg.SparseVectors:
    indices = [sorted(row) for row in rows]
    values = [row[term] for row, terms in zip(rows, indices, strict=True) for term in terms]
    return medkg.SparseVectors(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([term for terms in indices for term in terms], np.int64),
        np.array(values, np.float32),
    )


class TestSparse:
    def test_hybrid_search_in_a_gpu_server_and_a_refusal_that_names_it_elsewhere(
        self, store: VectorStore, collection: str
    ) -> None:
        vectors, sparse = np.eye(3, 4, dtype=np.float32), sparse_rows([{1: 2.0, 7: 1.0}, {}, {7: 3.0}])
        name = f"{collection}-sparse"
        if not isinstance(store, GpuServerStore):
            for field, call in (
                ("sparse_dimension", lambda: store.create(name, 4, sparse_dimension=9)),
                ("sparse", lambda: store.upsert(collection, ["a", "b", "c"], vectors, sparse=sparse)),
                ("sparse", lambda: store.search(collection, vectors, sparse=sparse)),
                ("fusion", lambda: store.search(collection, vectors, fusion=medkg.RankFusion())),
                ("with_sparse", lambda: store.fetch(collection, ["a"], with_sparse=True)),
            ):
                with pytest.raises(medkg.ServiceError, match="GpuServerStore") as caught:
                    call()
                assert (caught.value.code, caught.value.field_violations[0][0]) == ("UNIMPLEMENTED", field)
            assert store.count(collection) == 0
            assert name not in [info.name for info in store.list()]
            return
        assert store.create(name, 4, sparse_dimension=9).sparse_dimension == 9
        store.upsert(name, ["a", "b", "c"], vectors, sparse=sparse)
        [found] = store.search(name, k=5, sparse=sparse_rows([{7: 0.5}]))
        assert [(hit.id, hit.score) for hit in found] == [("c", 1.5), ("a", 0.5)]
        [both] = store.search(
            name, vectors[1], 5, sparse=sparse_rows([{7: 0.5}]), fusion=medkg.RankFusion(candidates=5)
        )
        # By cosine b is first and the other two tie; by the inner product c is before a, and b is not found.
        ranks = {hit.id: (hit.dense_rank, hit.sparse_rank) for hit in both}
        assert ranks == {"a": (2, 2), "b": (1, None), "c": (3, 1)}
        assert [hit.id for hit in both] == ["c", "a", "b"]
        fetched = store.fetch(name, ["c", "b"], with_sparse=True).sparse
        assert fetched is not None
        assert (fetched.indptr.tolist(), fetched.indices.tolist(), fetched.values.tolist()) == ([0, 1, 1], [7], [3.0])
        store.drop(name)

    def test_a_search_for_nothing_is_refused(self, store: VectorStore, collection: str) -> None:
        with pytest.raises(medkg.VectorValidationError) as caught:
            store.search(collection)
        assert field_of(caught) == "queries"
