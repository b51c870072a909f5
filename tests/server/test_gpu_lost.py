"""A GPU that is lost while callers work: what each of them sees, through medkg's own client."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import medkg
from medkg.local import LocalServer

from .operators import eventually
from .played import PlayedGpu

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = ("", "medkg.v1.GpuService", "medkg.v1.EmbeddingService", "medkg.v1.RerankingService", "medkg.v1.VectorService")
TEXTS = ["word " * 200] * 500


@pytest.fixture
def played(tmp_path: Path) -> PlayedGpu:
    return PlayedGpu(tmp_path)


@pytest.fixture
def on_gpu(played: PlayedGpu, minilm_dir: Path, reranker_dir: Path, tmp_path: Path) -> Iterator[LocalServer]:
    server = LocalServer(
        played.binary,
        device="cuda",
        embedding_models={"all-MiniLM-L6-v2": minilm_dir},
        reranking_models={"medkg-reranker-minilm": reranker_dir},
        data_dir=tmp_path / "data",
        log_path=tmp_path / "log.jsonl",
        threads=1,
        arguments=("--dtype", "f32", "--gpu-lost-grace", "3", "--batch-tokens", "1024"),
    )
    with server:
        yield server


def test_whoever_works_waits_or_watches_hears_of_it_and_the_process_ends_with_75(
    played: PlayedGpu, on_gpu: LocalServer
) -> None:
    services = medkg.connect(address=on_gpu.address, tenant="a", timeout=120)
    services.vector.create_collection("c", 4)
    channel = grpc.insecure_channel(on_gpu.address.removeprefix("http://"))
    health = health_pb2_grpc.HealthStub(channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest(service=role)) for role in ROLES]
    answer = health_pb2.HealthCheckResponse
    assert [next(watch).status for watch in watches] == [answer.SERVING] * len(ROLES)
    status = services.gpu.watch_status()
    first = next(status)
    assert (first.state, first.active_device) == ("ready", "cuda:0")

    def embed(_: int) -> Exception | None:
        try:
            services.embedding.embed(TEXTS)
        except medkg.MedkgError as error:
            return error
        return None

    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(embed, number) for number in range(3)]
        # Another tenant's turn comes between theirs: they are in work by then.
        with medkg.connect(address=on_gpu.address, tenant="b", timeout=120) as other:
            other.embedding.embed(["word"])
        played.xid(79)
        assert [next(watch).status for watch in watches] == [answer.NOT_SERVING] * len(ROLES)
        errors = [future.result() for future in working]
    # That its memory became known is a change too, where the first answer came before NVML's.
    told = next(told for told in status if told.state != "ready")
    assert (told.state, told.active_device) == ("unavailable", "")
    assert "Xid 79" in told.detail
    late = [
        lambda: services.embedding.embed(["late"]),
        lambda: services.reranking.rerank("late", ["late"]),
        lambda: services.vector.upsert("c", ["late"], np.ones((1, 4), dtype=np.float32)),
        lambda: services.gpu.allocate(1),
    ]
    for call in late:
        with pytest.raises(medkg.GpuLostError) as refused:
            call()
        errors.append(refused.value)
    for error in errors:
        assert isinstance(error, medkg.GpuLostError), error
        assert (error.code, error.retryable, error.breaker_state) == ("FAILED_PRECONDITION", False, "closed")
        assert "Xid 79" in str(error)
    channel.close()
    # By itself: a zombie until its exit status is asked for.
    eventually(lambda: Path(f"/proc/{on_gpu.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert on_gpu.stop() == 75
