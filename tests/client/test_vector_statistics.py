"""What collections and tenants tell of themselves, and the check of search against float64."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def watched(start_server: Callable[..., LocalServer], data: Path) -> LocalServer:
    return start_server(services=("vector",), embedding_models={}, reranking_models={}, data_dir=data)


def rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"{row:05}" for row in range(count)]


TERMS = 200


def terms(count: int, seed: int = 0) -> medkg.SparseVectors:
    """Rows of up to 11 terms, also of none, with weights of both signs."""
    random = np.random.default_rng(seed)
    each = [np.sort(random.choice(TERMS, size=size, replace=False)) for size in random.integers(0, 12, size=count)]
    indptr = np.cumsum([0, *map(len, each)])
    weights = random.choice([-1, 1], size=indptr[-1]) * random.uniform(0.1, 2, size=indptr[-1])
    return medkg.SparseVectors(indptr, np.concatenate(each).astype(np.int32), weights.astype(np.float32))


@pytest.mark.requirement("isolation 2.4")
def test_what_is_done_to_a_collection_is_counted(watched: LocalServer, data: Path) -> None:
    with medkg.connect(address=watched.address, tenant="counted") as services:
        before = dt.datetime.now(dt.timezone.utc)
        services.vector.create_collection("c", 16)
        fresh = services.vector.statistics("c")
        assert fresh.usage == medkg.CollectionUsage(0, 0, 0, 0, 0, 0, None, None)
        services.vector.upsert("c", names(500), rows(500, 16))
        services.vector.upsert("c", names(100), rows(100, 16, seed=1))
        assert services.vector.delete("c", ["00001", "00002", "nobody"]) == 2
        for _ in range(20):
            services.vector.search("c", rows(3, 16), 5)
        with pytest.raises(medkg.VectorValidationError):
            services.vector.search("c", rows(1, 8), 5)
        with pytest.raises(medkg.VectorValidationError):
            services.vector.upsert("c", ["x"], np.zeros((1, 16), dtype=np.float32))
        told = services.vector.statistics("c")
        usage = told.usage
        assert (usage.searches, usage.queries, told.queries) == (20, 60, 60), "what is refused does not count"
        assert (usage.upserts, usage.upserted_points, usage.deletes, usage.deleted_points) == (2, 600, 1, 2)
        assert usage.last_write is not None
        assert before <= usage.last_write <= dt.datetime.now(dt.timezone.utc)
        latency = usage.search_latency
        assert latency is not None
        assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= latency.max
        assert told.points == 498
        assert told.disk_bytes == (data / "counted" / "c.redb").stat().st_size
        assert told.device_bytes >= 498 * 16 * 4


def test_a_tenant_is_told_the_sums_of_its_own_collections(watched: LocalServer) -> None:
    with medkg.connect(address=watched.address, tenant="summed") as services:
        empty = services.vector.tenant_statistics()
        assert (empty.collections, empty.points, empty.usage.last_write) == (0, 0, None)
        for name, count in (("a", 100), ("b", 300)):
            services.vector.create_collection(name, 8)
            services.vector.upsert(name, names(count), rows(count, 8))
            services.vector.search(name, rows(2, 8), 1)
        services.vector.create_collection("a", 8, tenant="summed-too")
        services.vector.upsert("a", names(7), rows(7, 8), tenant="summed-too")
        each = [services.vector.statistics(name) for name in ("a", "b")]
        told = services.vector.tenant_statistics()
        assert (told.collections, told.points, told.damaged) == (2, 400, [])
        assert told.device_bytes == sum(one.device_bytes for one in each)
        assert told.disk_bytes == sum(one.disk_bytes for one in each)
        assert (told.usage.searches, told.usage.queries, told.usage.upserted_points) == (2, 4, 400)
        assert told.usage.last_write == each[1].usage.last_write
        assert told.usage.search_latency is not None
        longest = [one.usage.search_latency.max for one in each if one.usage.search_latency]
        assert told.usage.search_latency.max == max(longest)
        assert services.vector.tenant_statistics(tenant="summed-too").points == 7


def test_the_memory_of_the_sparse_index_is_told(
    start_server: Callable[..., LocalServer], tmp_path: Path, watched: LocalServer
) -> None:
    only: dict[str, Any] = {"services": ("vector",), "embedding_models": {}, "reranking_models": {}}
    server = start_server(data_dir=tmp_path / "data", **only)
    told = []
    with medkg.connect(address=server.address, tenant="words") as services:
        for name in ("a", "b"):
            services.vector.create_collection(name, 2, sparse_dimension=TERMS)
        services.vector.create_collection("dense", 2)
        services.vector.upsert("dense", names(9), rows(9, 2))
        for count in (1_000, 20_000):
            sparse = terms(count)
            services.vector.upsert("a", names(count), rows(count, 2), sparse=sparse)
            told.append(services.vector.statistics("a").sparse_index_bytes)
            # 8 bytes for each term of each point, and at most the spare room of lists that double.
            assert 8 * len(sparse.indices) <= told[-1] < 64 * len(sparse.indices)
        services.vector.upsert("b", names(10), rows(10, 2), sparse=terms(10))
        each = [services.vector.statistics(name).sparse_index_bytes for name in ("a", "b", "dense")]
        assert each[0] > each[1] > each[2] == 0
        assert services.vector.tenant_statistics().sparse_index_bytes == sum(each)
    assert told[0] < told[1]
    server.stop()
    # It is built anew with the view.
    server = start_server(data_dir=tmp_path / "data", **only)
    with medkg.connect(address=server.address, tenant="words") as services:
        assert 8 * len(terms(20_000).indices) <= services.vector.statistics("a").sparse_index_bytes <= each[0]
    server.stop()


def test_damaged_collections_are_named_to_their_tenant(
    start_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "hurt"
    folder.mkdir(parents=True)
    (folder / "gone.redb").write_bytes(b"no database")
    only: dict[str, Any] = {"services": ("vector",), "embedding_models": {}, "reranking_models": {}}
    server = start_server(data_dir=tmp_path / "data", **only)
    with medkg.connect(address=server.address, tenant="hurt") as services:
        services.vector.create_collection("well", 4)
        told = services.vector.tenant_statistics()
        assert (told.collections, told.damaged) == (1, ["gone"])
        assert services.vector.tenant_statistics(tenant="other").damaged == []


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_search_in_f32_has_full_recall(watched: LocalServer, metric: Any) -> None:
    vectors = rows(3_000, 32, seed=5)
    with medkg.connect(address=watched.address, tenant=f"recall-{metric}") as services:
        services.vector.create_collection("c", 32, metric)
        services.vector.upsert("c", names(3_000), vectors)
        searches = services.vector.statistics("c").usage.searches
        report = services.vector.check_recall("c", sample=50, k=20, seed=3)
        assert report == medkg.RecallReport(1.0, 1000, 1000, 50, 0, [], 3_000)
        assert services.vector.statistics("c").usage.searches == searches, "a check is no caller's search"
        assert services.vector.check_recall("c", sample=1, k=1).expected == 1
        everything = services.vector.check_recall("c", sample=1_000)
        assert (everything.queries, everything.recall) == (1_000, 1.0)


def near_ties() -> np.ndarray:
    """64 groups of 8 vectors that are alike but for 1e-4, which bf16 (8 bits) cannot tell apart and f32 can."""
    random = np.random.default_rng(11)
    groups = np.repeat(random.uniform(0.5, 1, (64, 1, 16)), 8, axis=1)
    return (groups + 1e-4 * random.standard_normal(groups.shape)).reshape(-1, 16).astype(np.float32)


def test_a_check_finds_what_rounded_vectors_miss(watched: LocalServer) -> None:
    vectors = near_ties()
    with medkg.connect(address=watched.address, tenant="ties") as services:
        reports = {}
        for storage in ("f32", "bf16"):
            kept: Any = storage
            services.vector.create_collection(storage, 16, "dot", storage=kept)
            services.vector.upsert(storage, names(len(vectors)), vectors)
            reports[storage] = services.vector.check_recall(storage, sample=64, k=3, seed=1)
        assert (reports["f32"].recall, reports["f32"].mismatches) == (1.0, 0)
        rounded = reports["bf16"]
        assert rounded.mismatches > 0
        assert rounded.recall < 1
        assert rounded.recall == rounded.found / rounded.expected
        assert 0 < len(rounded.mismatched_ids) == min(20, rounded.mismatches)
        # What it tells is what numpy finds: the named queries do miss, by more than the tolerance.
        exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
        for name in rounded.mismatched_ids:
            scores = exact[int(name)]
            [hits] = services.vector.search("bf16", vectors[int(name)], 3)
            found = [scores[int(hit.id)] for hit in hits]
            best = np.sort(scores)[::-1][:3]
            assert np.any(np.array(found) < best - 1e-6) or np.any(np.diff(found) > 1e-6), name


def test_search_by_sparse_vectors_has_full_recall(watched: LocalServer) -> None:
    count = 3_000
    sparse = terms(count, seed=2)
    dense = np.zeros((count, TERMS))
    for row in range(count):
        part = slice(sparse.indptr[row], sparse.indptr[row + 1])
        dense[row, sparse.indices[part]] = sparse.values[part]
    alike = (dense != 0).astype(int) @ (dense != 0).astype(int).T > 0
    with medkg.connect(address=watched.address, tenant="recall-sparse") as services:
        services.vector.create_collection("c", 4, sparse_dimension=TERMS)
        services.vector.upsert("c", names(count), rows(count, 4), sparse=terms(count, seed=9))
        services.vector.upsert("c", names(count), rows(count, 4), sparse=sparse)
        searches = services.vector.statistics("c").usage.searches
        report = services.vector.check_recall("c", sample=50, k=20, seed=3, sparse=True)
        with_terms = int(alike.diagonal().sum())
        assert 0 < with_terms < count
        assert report == medkg.RecallReport(1.0, 1000, 1000, 50, 0, [], with_terms)
        assert services.vector.statistics("c").usage.searches == searches, "a check is no caller's search"
        # Both kinds are checked apart from each other.
        assert services.vector.check_recall("c", sample=50, k=20, seed=3).points == count
        # Where few share a term, those few are all that is expected.
        services.vector.delete("c", names(count)[200:])
        few = services.vector.check_recall("c", sample=1_000, k=100, sparse=True)
        assert few.expected == np.minimum(alike[:200, :200].sum(axis=1), 100).sum()
        assert (few.recall, few.mismatches) == (1.0, 0)
        assert few.queries == few.points == alike[:200, :200].diagonal().sum()


def test_an_empty_collection_and_wrong_arguments(watched: LocalServer) -> None:
    with medkg.connect(address=watched.address, tenant="empty") as services:
        services.vector.create_collection("c", 4)
        report = services.vector.check_recall("c")
        assert (report.recall, report.queries, report.points) == (1.0, 0, 0)
        with pytest.raises(medkg.VectorValidationError, match="sample"):
            services.vector.check_recall("c", sample=1_001)
        with pytest.raises(medkg.VectorValidationError, match=r"\bk\b"):
            services.vector.check_recall("c", k=101)
        with pytest.raises(medkg.CollectionNotFoundError):
            services.vector.check_recall("nothing")
        with pytest.raises(medkg.VectorValidationError) as caught:
            services.vector.check_recall("c", sparse=True)
        assert caught.value.field_violations[0][0] == "sparse"
        services.vector.create_collection("s", 4, sparse_dimension=9)
        services.vector.upsert("s", ["without"], rows(1, 4))
        report = services.vector.check_recall("s", sparse=True)
        assert (report.recall, report.queries, report.points) == (1.0, 0, 0)


def test_a_check_ends_with_its_deadline_and_writes_go_on_afterwards(watched: LocalServer) -> None:
    with medkg.connect(address=watched.address, tenant="late", max_attempts=1) as services:
        services.vector.create_collection("c", 256, "dot")
        services.vector.upsert("c", names(20_000), rows(20_000, 256))
        with pytest.raises(medkg.ServiceTimeoutError):
            services.vector.check_recall("c", sample=1_000, k=100, timeout=0.05)
        assert services.vector.upsert("c", ["new"], rows(1, 256)).inserted == 1


def test_a_check_is_right_while_points_are_written(watched: LocalServer) -> None:
    vectors = rows(2_000, 32, seed=8)
    stop = threading.Event()
    written = []

    def write() -> None:
        with medkg.connect(address=watched.address, tenant="busy") as own:
            turn = 0
            while not stop.is_set():
                turn += 1
                own.vector.upsert("c", names(200), rows(200, 32, seed=100 + turn), sparse=terms(200, seed=turn))
                own.vector.delete("c", [f"{row:05}" for row in range(200, 220)])
                own.vector.upsert(
                    "c", [f"{row:05}" for row in range(200, 220)], vectors[200:220], sparse=terms(20, seed=turn)
                )
                written.append(turn)

    with medkg.connect(address=watched.address, tenant="busy") as services:
        services.vector.create_collection("c", 32, "dot", sparse_dimension=TERMS)
        services.vector.upsert("c", names(2_000), vectors, sparse=terms(2_000))
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for seed in range(8):
                report = services.vector.check_recall("c", sample=40, seed=seed, sparse=seed % 2 == 1, timeout=120)
                assert report.mismatches == 0, report
        finally:
            stop.set()
            writer.join()
        assert written


def test_the_awaitable_twins(watched: LocalServer) -> None:
    async def ask() -> None:
        async with medkg.connect_async(address=watched.address, tenant="twins") as services:
            await services.vector.create_collection("c", 4)
            await services.vector.upsert("c", names(10), rows(10, 4))
            assert (await services.vector.tenant_statistics()).points == 10
            assert (await services.vector.check_recall("c", sample=4, k=2)).expected == 8
            with pytest.raises(medkg.VectorValidationError, match="sparse"):
                await services.vector.check_recall("c", sparse=True)
            assert (await services.vector.statistics("c")).usage.upserted_points == 10

    asyncio.run(ask())
