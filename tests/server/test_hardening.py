"""What a hostile or unlucky client, a second server or a stop at the wrong moment could break."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .conftest import TENANT
from .test_lifecycle import eventually, health, long_call
from .test_vectors import DIMENSION, ONLY_VECTOR, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

    from .authority import Authority


def resident_bytes(server: LocalServer) -> int:
    with open(f"/proc/{server.pid}/status", encoding="utf-8") as lines:  # noqa: PTH123
        [kibibytes] = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(kibibytes) * 1024


def test_a_pair_of_long_texts_costs_no_more_than_its_length(
    wire: Any, server: LocalServer, channel: grpc.Channel
) -> None:
    r = wire.reranking
    long = "renal function " * 20_000
    query = r.RerankQuery(query=long, documents=[r.RerankDocument(text=long)] * 3)
    before = resident_bytes(server)
    answer = r.RerankingServiceStub(channel).RerankBatch(
        r.RerankBatchRequest(queries=[query]), metadata=[TENANT], timeout=120
    )
    assert answer.truncated_pairs == 3
    # Combining the cut-off rests of both sides with each other would take gigabytes.
    assert resident_bytes(server) - before < 600 * 2**20


def test_a_second_server_waits_for_the_data_folder(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, refused: Any, tmp_path: Path
) -> None:
    first = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    mine = Vectors(wire, open_channel(first))
    mine.create("live")
    mine.upsert("live", ["x"], np.ones((1, DIMENSION), dtype=np.float32))
    second = start_server(**ONLY_VECTOR, data_dir=tmp_path, wait=False)
    channel = open_channel(second)
    theirs = Vectors(wire, channel)
    eventually(lambda: any("another server uses" in str(line.get("message")) for line in second.events()))
    refusal = refused(theirs.stub.DropCollection, theirs.w.DropCollectionRequest(collection="live"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    assert health(channel) != 1
    first.stop()
    eventually(lambda: health(channel) == 1)
    assert theirs.points("live") == 1
    second.stop()


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_a_large_answer_survives_the_drain(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, authority: Authority, *, secured: bool
) -> None:
    arguments, credentials = [], None
    if secured:
        certificate, key = authority.server()
        arguments = ["--tls-cert", str(certificate), "--tls-key", str(key)]
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    server = start_server(**ONLY_VECTOR, arguments=arguments)
    vectors = Vectors(wire, open_channel(server, credentials))
    vectors.create("large")
    rows = np.random.default_rng(1).normal(size=(2000, DIMENSION)).astype(np.float32)
    payload = '{"text": "' + "x" * 2000 + '"}'
    for start in range(0, 2000, 500):
        vectors.upsert(
            "large", [f"p{i}" for i in range(start, start + 500)], rows[start : start + 500], [payload] * 500
        )
    request = vectors.w.SearchVectorsRequest(
        collection="large", queries=vectors.tensor(rows[:4]), k=2000, with_payload=True
    )
    running = vectors.stub.SearchVectors.future(request, metadata=vectors.metadata, timeout=60)
    eventually(lambda: running.done() or any("SearchVectors" in str(line.get("method")) for line in server.events()))
    assert server.stop() == 0
    hits = running.result().hits
    assert [len(hit.points) for hit in hits] == [2000] * 4


def test_a_stop_in_the_middle_of_a_forward_pass_exits_0(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    for _ in range(3):
        server = start_server(reranking_models={}, services=("gpu", "embedding"))
        running = long_call(wire, open_channel(server), texts=400)
        eventually(lambda s=server: any("listening" in str(line.get("message")) for line in s.events()))
        time.sleep(0.3)  # the pass is under way: nothing outside the worker can see it
        running.cancel()
        assert server.stop() == 0


def test_searches_do_not_starve_embeddings(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(services=("gpu", "embedding", "vector"), reranking_models={})
    vectors = Vectors(wire, open_channel(server))
    rows = np.random.default_rng(1).normal(size=(4000, DIMENSION)).astype(np.float32)
    vectors.create("busy", "L2")
    vectors.upsert("busy", [str(i) for i in range(4000)], rows)
    done = threading.Event()
    searches = []

    def search() -> None:
        own = Vectors(wire, open_channel(server))
        while not done.is_set():
            searches.append(len(own.search("busy", rows[:50], 5)))

    threads = [threading.Thread(target=search) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(searches) > 6)
        embed = wire.embedding.EmbeddingServiceStub(open_channel(server)).GenerateEmbeddings
        answer = embed(wire.embedding.GenerateEmbeddingsRequest(texts=["hello"]), metadata=[TENANT], timeout=60)
        assert list(answer.embeddings.shape) == [1, 384]
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    server.stop()


def test_a_drop_whose_caller_leaves_is_whole_or_not_at_all(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(services=("gpu", "embedding", "vector"), reranking_models={})
    channel = open_channel(server)
    vectors = Vectors(wire, channel)
    vectors.create("probe")
    busy = long_call(wire, channel, texts=400)

    def worker_is_busy() -> bool:
        started = time.monotonic()
        vectors.search("probe", np.ones((1, DIMENSION)), 1)
        return time.monotonic() - started > 0.05

    eventually(worker_is_busy)
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="probe"))
    drop = vectors.w.DropCollectionRequest(collection="left")
    left_early = 0

    def listed() -> bool:
        return bool(vectors.call("ListCollections", vectors.w.ListCollectionsRequest()).collections)

    def served() -> bool:
        try:
            vectors.points("left")
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    for milliseconds in (1, 2, 4, 8, 16, 32):
        if not listed():
            assert vectors.create("left")
        try:
            vectors.stub.DropCollection(drop, metadata=vectors.metadata, timeout=milliseconds / 1000)
        except grpc.RpcError:
            left_early += 1
        eventually(lambda: listed() == served())
    assert left_early > 0
    busy.cancel()
    server.stop()


def test_foreign_folders_and_half_made_files_are_left_out(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o000)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "half.new").write_bytes(b"")
    (tmp_path / "raw" / "notes.txt").write_text("not ours")
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    assert vectors.create("half")
    assert not (tmp_path / "raw" / "half.new").exists()
    assert (tmp_path / "raw" / "notes.txt").exists()
    server.stop()


@pytest.mark.parametrize(
    ("rows", "field"),
    [([[3e38, -3e38, 0.0]], "vectors[0]"), ([[1e-14, 0.0, 0.0]], "vectors[0]")],
    ids=["overflow", "no-direction"],
)
def test_vectors_that_f32_cannot_score_are_refused(
    wire: Any, channel: grpc.Channel, refused: Any, rows: list[list[float]], field: str
) -> None:
    vectors = Vectors(wire, channel)
    vectors.create("extreme", dimension=3)
    request = vectors.w.UpsertVectorsRequest(collection="extreme", ids=["x"], vectors=vectors.tensor(np.asarray(rows)))
    assert refused(vectors.stub.UpsertVectors, request).fields == [field]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="extreme"))


def test_too_much_to_find_at_once_is_refused(wire: Any, channel: grpc.Channel, refused: Any) -> None:
    vectors = Vectors(wire, channel)
    vectors.create("wide")
    request = vectors.w.SearchVectorsRequest(
        collection="wide", queries=vectors.tensor(np.ones((60, DIMENSION))), k=10_000
    )
    assert refused(vectors.stub.SearchVectors, request).fields == ["k"]
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="wide"))


def test_a_long_complaint_arrives_whole_enough(wire: Any, channel: grpc.Channel, refused: Any) -> None:
    vectors = Vectors(wire, channel)
    vectors.create("echo")
    request = vectors.w.UpsertVectorsRequest(
        collection="echo",
        ids=["x"],
        vectors=vectors.tensor(np.ones((1, DIMENSION))),
        payloads=['"' + "secret" * 10_000 + '"'],
    )
    refusal = refused(vectors.stub.UpsertVectors, request)
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["payloads[0]"])
    assert "secret" not in refusal.message
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="echo"))


def test_a_cancelled_stream_is_not_computed_on(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(services=("embedding",), reranking_models={})
    channel = open_channel(server)
    e = wire.embedding
    batch = e.StreamEmbeddingsRequest(batch=e.GenerateEmbeddingsRequest(texts=["word " * 250] * 500))
    stream = e.EmbeddingServiceStub(channel).StreamEmbeddings(iter([batch] * 4), metadata=[TENANT], timeout=120)
    time.sleep(0.5)  # some of it is in the queue
    stream.cancel()
    embed = e.EmbeddingServiceStub(channel).GenerateEmbeddings
    answer = embed(e.GenerateEmbeddingsRequest(texts=["mine"]), metadata=[TENANT], timeout=60)
    # 2,000 texts of 252 tokens take minutes on one thread.
    assert answer.usage.queue_time.ToTimedelta().total_seconds() < 20
    server.stop()
