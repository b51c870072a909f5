"""Health tells the truth, SIGTERM drains, and a server without its device refuses."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .conftest import TENANT, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    "gpu": "medkg.v1.GpuService",
    "embedding": "medkg.v1.EmbeddingService",
    "reranking": "medkg.v1.RerankingService",
    "vector": "medkg.v1.VectorService",
}


def health(channel: grpc.Channel, service: str = "") -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=20).status)


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def long_call(wire: Any, channel: grpc.Channel, texts: int = 60) -> Any:
    request = wire.embedding.GenerateEmbeddingsRequest(texts=["word " * 250] * texts)
    return wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings.future(
        request, metadata=[TENANT], timeout=120
    )


def in_work(channel: grpc.Channel, wire: Any, server: LocalServer) -> None:
    """Waits until a call that was sent has reached the server, seen by a second call's queue time."""
    request = wire.gpu.GetStatusRequest()
    wire.gpu.GpuServiceStub(channel).GetStatus(request, metadata=[TENANT], timeout=20)
    eventually(lambda: any(line.get("method") == "GpuService/GetStatus" for line in server.events()))


@pytest.mark.requirement("isolation 4.2")
@pytest.mark.requirement("isolation 3.2")
@pytest.mark.requirement("isolation 2.4")
@pytest.mark.requirement("isolation 2.5")
@pytest.mark.requirement("isolation 3.4")
@pytest.mark.requirement("isolation 4.4")
def test_every_role_is_serving_once_its_models_answered(server: LocalServer, channel: grpc.Channel) -> None:
    for service in ("", *SERVICES.values()):
        assert health(channel, service) == SERVING, service
    ready = [line for line in server.events() if line.get("message") == "model ready"]
    assert {line["model"] for line in ready} == {"all-MiniLM-L6-v2", "medkg-reranker-minilm"}


def test_a_role_is_not_serving_before_its_models_are_ready(
    start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(wait=False)
    channel = open_channel(server)
    seen = []
    health_now = health(channel, SERVICES["embedding"])
    seen.append(health_now)
    eventually(lambda: health(channel) == SERVING)
    events = [line.get("message") for line in server.events()]
    # The server listened, and could be asked, before the first model was there.
    assert events.index("model ready") > next(i for i, m in enumerate(events) if str(m).startswith("listening"))
    assert seen[0] in (NOT_SERVING, SERVING)
    server.stop()


@pytest.mark.requirement("isolation 2.3")
@pytest.mark.requirement("isolation 7.4")
def test_a_broken_model_shows_in_the_health_of_its_role_only(
    start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Any
) -> None:
    server = start_server(reranking_models={"broken": tmp_path})
    channel = open_channel(server)
    assert health(channel, SERVICES["embedding"]) == SERVING
    assert health(channel, SERVICES["reranking"]) == NOT_SERVING
    assert health(channel) == NOT_SERVING
    server.stop()


def test_only_the_chosen_roles_are_served(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, refused: Any
) -> None:
    server = start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)
    channel = open_channel(server)
    refusal = refused(
        wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings,
        wire.embedding.GenerateEmbeddingsRequest(texts=["x"]),
    )
    assert refusal.code == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        health(channel, SERVICES["embedding"])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert health(channel) == SERVING
    server.stop()


@pytest.fixture(scope="module")
def without_gpu(start_server: Callable[..., LocalServer]) -> LocalServer:
    """The default device on a machine that shows no GPU: a true fault, not a simulated one."""
    return start_server(device="cuda", env={"CUDA_VISIBLE_DEVICES": ""})


def test_without_a_gpu_every_role_is_not_serving(without_gpu: LocalServer, open_channel: Any) -> None:
    channel = open_channel(without_gpu)
    for service in ("", *SERVICES.values()):
        assert health(channel, service) == NOT_SERVING, service


def test_without_a_gpu_every_call_is_a_failed_precondition(
    wire: Any, without_gpu: LocalServer, open_channel: Any, refused: Any
) -> None:
    channel = open_channel(without_gpu)
    e, r, v, g = wire.embedding, wire.reranking, wire.vector, wire.gpu
    query = r.RerankQuery(query="q", documents=[r.RerankDocument(text="d")])
    calls = [
        (e.EmbeddingServiceStub(channel).GenerateEmbeddings, e.GenerateEmbeddingsRequest(texts=["x"])),
        (e.EmbeddingServiceStub(channel).ListModels, e.EmbeddingServiceListModelsRequest()),
        (r.RerankingServiceStub(channel).RerankBatch, r.RerankBatchRequest(queries=[query])),
        (v.VectorServiceStub(channel).ListCollections, v.ListCollectionsRequest()),
        (g.GpuServiceStub(channel).AllocateGPU, g.AllocateGPURequest(memory_bytes=1)),
    ]
    for method, request in calls:
        refusal = refused(method, request)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GPU_UNAVAILABLE")
        assert refusal.retry_seconds is None
    status = g.GpuServiceStub(channel).GetStatus(g.GetStatusRequest(), metadata=[TENANT], timeout=20)
    assert status.state == g.DEVICE_STATE_UNAVAILABLE
    assert (status.requested_device, status.active_device) == ("cuda:0", "")
    assert "no GPU" in status.detail


def test_the_cpu_is_told_where_it_was_named(wire: Any, channel: grpc.Channel, refused: Any) -> None:
    g = wire.gpu
    stub = g.GpuServiceStub(channel)
    status = stub.GetStatus(g.GetStatusRequest(), metadata=[TENANT], timeout=20)
    assert (status.state, status.active_device) == (g.DEVICE_STATE_READY, "cpu")
    assert "--device cpu" in status.detail
    assert list(status.roles) == ["gpu", "embedding", "reranking", "vector"]
    [device] = stub.ListDevices(g.ListDevicesRequest(), metadata=[TENANT], timeout=20).devices
    assert (device.id, device.kind, device.active) == ("cpu", g.DEVICE_KIND_CPU, True)
    assert device.total_memory_bytes > 2**28
    assert refused(stub.AllocateGPU, g.AllocateGPURequest(memory_bytes=1)).reason == "GPU_UNAVAILABLE"


def test_sigterm_finishes_what_runs_and_exits_0(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server()
    channel = open_channel(server)
    # A Watch that its client never ends must not hold the server.
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert next(watch).status == SERVING
    running = long_call(wire, channel)
    in_work(channel, wire, server)
    stopped: list[int | None] = []
    stopping = threading.Thread(target=lambda: stopped.append(server.stop()))
    stopping.start()
    assert next(watch).status == NOT_SERVING
    answer = running.result()
    assert list(answer.embeddings.shape) == [60, 384]
    stopping.join(60)
    assert stopped == [0]


def test_the_drain_deadline_cuts_off_what_runs_longer(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(arguments=["--drain-deadline", "0.2"])
    channel = open_channel(server)
    running = long_call(wire, channel, texts=4000)
    in_work(channel, wire, server)
    assert server.stop() == 0
    assert running.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert any("drain deadline passed" in str(line.get("message")) for line in server.events())


def test_a_full_queue_says_when_to_come_back(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server(arguments=["--queue-tokens", "2000"])
    channel = open_channel(server)
    # Each is larger than the whole queue: the first is let in alone, the second finds the queue full.
    calls = [long_call(wire, channel), long_call(wire, channel)]
    errors = [error for error in (call.exception() for call in calls) if error is not None]
    assert len(errors) == 1
    refusal = Refusal(errors[0])
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refusal.retry_seconds is not None
    assert refusal.retry_seconds > 0
    server.stop()


def test_a_caller_that_left_is_not_computed(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start_server()
    channel = open_channel(server)
    abandoned = long_call(wire, channel, texts=2000)
    in_work(channel, wire, server)
    abandoned.cancel()
    started = time.monotonic()
    embed = wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings
    answer = embed(wire.embedding.GenerateEmbeddingsRequest(texts=["mine"]), metadata=[TENANT], timeout=120)
    waited = answer.usage.queue_time.ToTimedelta().total_seconds()
    # 2,000 texts of 252 tokens take minutes on one thread; the queue is free as soon as the running batch ends.
    assert waited <= time.monotonic() - started
    assert answer.usage.batches == 1
    assert waited < 30
    server.stop()


def test_a_stream_answers_in_order(wire: Any, channel: grpc.Channel) -> None:
    e = wire.embedding
    batches = [[f"text {i} of batch {b}" for i in range(b % 5 + 1)] for b in range(20)]
    requests = (e.StreamEmbeddingsRequest(batch=e.GenerateEmbeddingsRequest(texts=texts)) for texts in batches)
    answers = list(e.EmbeddingServiceStub(channel).StreamEmbeddings(requests, metadata=[TENANT], timeout=60))
    assert [answer.batch.embeddings.shape[0] for answer in answers] == [len(texts) for texts in batches]


def test_a_bad_batch_ends_its_stream_with_its_error(wire: Any, channel: grpc.Channel) -> None:
    e = wire.embedding
    requests = (
        e.StreamEmbeddingsRequest(batch=e.GenerateEmbeddingsRequest(texts=texts)) for texts in (["a"], ["b", ""], ["c"])
    )
    stream = e.EmbeddingServiceStub(channel).StreamEmbeddings(requests, metadata=[TENANT], timeout=60)
    assert next(stream).batch.embeddings.shape[0] == 1
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "texts[1]" in (caught.value.details() or "")


def test_the_tokenizer_comes_whole_and_without_hard_coded_limits(wire: Any, channel: grpc.Channel) -> None:
    from tokenizers import Tokenizer

    pieces = wire.embedding.EmbeddingServiceStub(channel).GetTokenizer(
        wire.embedding.GetTokenizerRequest(), metadata=[TENANT], timeout=20
    )
    tokenizer = Tokenizer.from_str(b"".join(piece.chunk for piece in pieces).decode())
    assert tokenizer.truncation is None
    assert tokenizer.padding is None
    assert len(tokenizer.encode("word " * 300).ids) == 302


def test_the_callers_trace_and_ids_stand_in_the_log(wire: Any, server: LocalServer, channel: grpc.Channel) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = [TENANT, ("traceparent", f"00-{trace}-b7ad6b7169203331-01"), ("x-request-id", "req-42")]
    wire.gpu.GpuServiceStub(channel).GetStatus(wire.gpu.GetStatusRequest(), metadata=metadata, timeout=20)

    def logged() -> bool:
        return any(
            (line.get("trace_id"), line.get("request_id"), line.get("tenant")) == (trace, "req-42", "raw")
            for line in server.events()
        )

    eventually(logged)


def test_sigint_stops_it_too(start_server: Callable[..., LocalServer]) -> None:
    import os

    server = start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)
    os.kill(server.pid, signal.SIGINT)
    assert server.stop() == 0
