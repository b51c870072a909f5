"""Leases on a GPU that NVML plays: turns, connections, the audit, and the memory that models and collections hold."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

import medkg

from .operators import Operated, eventually
from .played import NUMBER, PlayedGpu
from .test_gpu_truth import GIB, GPU, MIG, gpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

MIB = 2**20


@pytest.fixture
def played(tmp_path: Path) -> PlayedGpu:
    return PlayedGpu(tmp_path)


def client(server: LocalServer, tenant: str) -> medkg.GpuClient:
    return medkg.GpuClient(address=server.address, tenant=tenant, timeout=60)


@pytest.mark.requirement("isolation 2.2")
def test_a_lease_is_its_tenants_own_and_ends_once(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    server = lend(played)
    mine, other = client(server, "mine"), client(server, "other")
    lease = mine.allocate(50 * GIB, owner="training")
    assert (lease.device, lease.memory_bytes) == ("cuda:0", 50 * GIB)
    told = mine.device("cuda:0")
    [seen] = told.leases
    assert (seen.lease_id, seen.owner, seen.memory_bytes) == (lease.lease_id, "training", 50 * GIB)
    hidden = other.device(f"GPU-{NUMBER}")
    assert (hidden.leases, hidden.device.leased_memory_bytes) == ([], 50 * GIB)
    with pytest.raises(medkg.RateLimitedError, match="most left is") as full:
        other.allocate(31 * GIB)
    assert full.value.reason == "GPU_MEMORY_EXHAUSTED"
    for call in (lambda: other.release(lease.lease_id), lambda: other.renew(lease.lease_id)):
        with pytest.raises(medkg.NotFoundError, match="unknown"):
            call()
    assert mine.renew(lease.lease_id, ttl=3600) > lease.expires_at
    assert mine.release(lease.lease_id) == 50 * GIB
    for call in (lambda: mine.release(lease.lease_id), lambda: mine.renew(lease.lease_id)):
        with pytest.raises(medkg.NotFoundError, match="released already"):
            call()
    assert mine.device("cuda:0").device.leased_memory_bytes == 0


def test_an_expired_lease_says_so(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    mine = client(lend(played), "mine")
    lease = mine.allocate(GIB, ttl=1)
    eventually(lambda: mine.device("cuda:0").device.leased_memory_bytes == 0)
    with pytest.raises(medkg.NotFoundError, match="has expired"):
        mine.renew(lease.lease_id)


def test_a_size_that_can_never_be_had_is_named_at_once(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    mine = client(lend(played), "mine")
    for size in (0, -1, 1.5, 2**64, 81 * GIB, 2**63):
        with pytest.raises(medkg.ValidationError, match="memory_bytes"):
            mine.allocate(size, wait=60)  # type: ignore[arg-type]
    for wait in (-1.0, 3_601.0, 1e300):
        with pytest.raises(medkg.ValidationError, match="wait"):
            mine.allocate(1, wait=wait)
    with pytest.raises(medkg.ValidationError, match="device"):
        mine.allocate(1, device="cuda:1", wait=60)


def test_a_call_waits_for_its_turn_within_its_deadline(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    server = lend(played)
    mine = client(server, "mine")
    held = mine.allocate(80 * GIB)

    async def ask() -> medkg.Lease:
        async with medkg.AsyncGpuClient(address=server.address, tenant="async", timeout=60) as waits:
            return await waits.allocate(70 * GIB, wait=60)

    with pytest.raises(medkg.RateLimitedError):
        mine.allocate(GIB, wait=0.2)
    with pytest.raises(medkg.ServiceTimeoutError):
        mine.allocate(GIB, wait=60, timeout=0.3, request_id="gave-up")
    eventually(lambda: [line["request_id"] for line in audit(server, "left")] == ["gave-up"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(asyncio.run, ask())
        eventually(lambda: any(line["tenant"] == "async" for line in audit(server, "queued")))
        # It does not overtake the one that waits, although nothing else is asked for.
        with pytest.raises(medkg.RateLimitedError, match="1 wait before"):
            client(server, "late").allocate(1)
        mine.release(held.lease_id)
        assert waiting.result(timeout=60).memory_bytes == 70 * GIB


def test_whoever_waits_hears_of_a_lost_gpu(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    server = lend(played)
    mine = client(server, "mine")
    mine.allocate(80 * GIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mine.allocate, 1, wait=60)
        eventually(lambda: audit(server, "queued"))
        played.xid(79)
        with pytest.raises(medkg.GpuLostError, match="Xid 79"):
            waiting.result(timeout=60)


def test_a_server_that_stops_lets_nobody_wait(lend: Callable[..., LocalServer], played: PlayedGpu) -> None:
    server = lend(played)
    mine = medkg.GpuClient(address=server.address, tenant="mine", timeout=60, max_attempts=1)
    mine.allocate(80 * GIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(mine.allocate, 1, wait=60)
        eventually(lambda: audit(server, "queued"))
        assert server.stop() == 0
        with pytest.raises(medkg.ServiceUnavailableError):
            waiting.result(timeout=60)


def test_a_lease_ends_with_its_connection_and_each_step_is_audited(
    lend: Callable[..., LocalServer], played: PlayedGpu, wire: Any, open_channel: Any
) -> None:
    # Whatever the log leaves out, it is not the audit.
    server = lend(played, "--log", "gpu_server=info")
    # medkg's clients of one process share a connection; this one has its own.
    g = wire.gpu
    watches = g.GpuServiceStub(open_channel(server))

    def leased() -> int:
        request = g.GetDeviceInfoRequest(device="cuda:0")
        told = watches.GetDeviceInfo(request, metadata=[("x-tenant-id", "watches")], timeout=60)
        return int(told.device.leased_memory_bytes)

    mine = client(server, "mine")
    mine.allocate(GIB, owner="dies", ttl=3600, request_id="asked-1")
    kept = mine.allocate(2 * GIB, owner="moves", ttl=3600, request_id="asked-2")
    mine.allocate(4 * GIB, owner="outlives", ttl=3600, outlives_connection=True)
    mine.close()
    again = client(server, "mine")
    again.renew(kept.lease_id, ttl=3600)
    eventually(lambda: leased() == 6 * GIB)
    again.close()
    eventually(lambda: leased() == 4 * GIB)
    [first] = [line for line in audit(server, "granted") if line["owner"] == "dies"]
    assert (first["tenant"], first["request_id"], first["bytes"]) == ("mine", "asked-1", GIB)
    assert (first["device"], first["action"], first["audit"]) == ("cuda:0", "AllocateGPU", True)
    [ended] = [line for line in audit(server, "released") if line["owner"] == "dies"]
    same = ("tenant", "request_id", "trace_id", "lease", "device", "bytes", "owner")
    assert {name: ended[name] for name in same} == {name: first[name] for name in same}
    assert len([line for line in audit(server, "orphaned") if line["owner"] == "moves"]) == 2
    [renewed] = audit(server, "renewed")
    assert renewed["lease"] == kept.lease_id
    with pytest.raises(medkg.RateLimitedError):
        client(server, "late").allocate(80 * GIB, owner="greedy", request_id="asked-3")
    [refused] = audit(server, "refused")
    assert (refused["tenant"], refused["request_id"], refused["owner"]) == ("late", "asked-3", "greedy")


def test_a_connection_that_is_too_old_takes_no_lease_with_it(
    lend: Callable[..., LocalServer], played: PlayedGpu
) -> None:
    mine = client(lend(played, "--connection-age", "1"), "mine")
    lease = mine.allocate(GIB, ttl=3600)
    short = mine.allocate(2 * GIB, ttl=3)
    # Longer than the connection lives, and the grace after it.
    eventually(lambda: mine.device("cuda:0").device.leased_memory_bytes == GIB)
    with pytest.raises(medkg.NotFoundError, match="has expired"):
        mine.release(short.lease_id)
    mine.renew(lease.lease_id)
    assert mine.release(lease.lease_id) == GIB


def test_several_gpus_and_mig_devices_are_leased_as_they_are_listed(
    lend: Callable[..., LocalServer], tmp_path: Path
) -> None:
    whole, half, second = GPU.format(2), MIG.format(4), GPU.format(3)
    others = {
        whole: gpu(whole, mig=1),
        half: gpu(half, parent=whole, gib=40),
        second: gpu(second, gib=141),
    }
    mine = client(lend(PlayedGpu(tmp_path, others=others)), "mine")
    listed = {device.id: device.uuid for device in mine.devices()}
    assert listed == {"cuda:0": f"GPU-{NUMBER}", "cuda:1": half, "cuda:2": second, whole: whole}
    assert mine.allocate(30 * GIB, device=half).device == "cuda:1"
    with pytest.raises(medkg.RateLimitedError):
        mine.allocate(11 * GIB, device="cuda:1")
    with pytest.raises(medkg.ValidationError, match="memory_bytes"):
        mine.allocate(41 * GIB, device=half)
    # Nothing can be computed on a GPU that is cut.
    with pytest.raises(medkg.ValidationError, match="device"):
        mine.allocate(1, device=whole)
    assert [mine.allocate(70 * GIB).device for _ in range(3)] == ["cuda:2", "cuda:0", "cuda:2"]
    assert mine.device(half).device.leased_memory_bytes == 30 * GIB


def test_leases_and_collections_share_the_memory(lend: Callable[..., LocalServer], tmp_path: Path) -> None:
    server = lend(PlayedGpu(tmp_path, total=64 * MIB), services=("gpu", "vector"), data_dir=tmp_path / "data")
    leases = client(server, "a")
    vectors = medkg.VectorClient(address=server.address, tenant="a", timeout=30)
    vectors.create_collection("c", 1024)
    rows = np.random.default_rng(1).standard_normal((4_096, 1024), dtype=np.float32)
    ids = [f"p{number}" for number in range(len(rows))]
    lease = leases.allocate(60 * MIB)
    with pytest.raises(medkg.RateLimitedError, match='collection "c"') as held:
        vectors.upsert("c", ids, rows)
    assert held.value.reason == "GPU_MEMORY_EXHAUSTED"
    assert f"leases hold {60 * MIB}" in str(held.value)
    assert vectors.count("c") == 0, "nothing was written"
    vectors.upsert("c", ids[:256], rows[:256])
    leases.release(lease.lease_id)
    vectors.upsert("c", ids, rows)
    assert vectors.count("c") == len(ids)
    with pytest.raises(medkg.RateLimitedError):
        leases.allocate(60 * MIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(leases.allocate, 60 * MIB, wait=60)
        eventually(lambda: audit(server, "queued"))
        vectors.drop_collection("c")
        assert waiting.result(timeout=60).memory_bytes == 60 * MIB


def test_a_model_that_does_not_fit_beside_the_others_says_what_holds_the_memory(
    lend: Callable[..., LocalServer], reranker_dir: Path, tmp_path: Path
) -> None:
    played = PlayedGpu(tmp_path, total=MIB)
    models = {"medkg-reranker-minilm": reranker_dir}
    server = lend(played, services=("gpu", "reranking"), reranking_models=models)
    reranking = medkg.RerankingClient(address=server.address, tenant="a", timeout=20)
    with pytest.raises(medkg.RateLimitedError, match="of the GPU's 1048576") as refused:
        reranking.rerank("q", ["d"])
    assert refused.value.reason == "GPU_MEMORY_EXHAUSTED"
    assert 'model "medkg-reranker-minilm"' in str(refused.value)
    lease = client(server, "a").allocate(MIB)
    assert lease.memory_bytes == MIB


@pytest.mark.requirement("isolation 2.3")
def test_a_model_is_not_loaded_into_memory_that_is_leased(
    lend: Callable[..., LocalServer], reranker_dir: Path, tmp_path: Path, wire: Any, open_channel: Any
) -> None:
    name = "medkg-reranker-minilm"
    server = lend(
        PlayedGpu(tmp_path, total=512 * MIB),
        *("--admin-listen", "127.0.0.1:0"),
        services=("gpu", "reranking"),
        reranking_models={name: reranker_dir},
    )
    [admin] = [line["address"] for line in server.events() if str(line.get("message")).startswith("operators are")]
    with grpc.insecure_channel(str(admin)) as operators:
        operated = Operated(wire, server, open_channel(server), operators)
        operated.unload(name, role="reranking")
        mine = client(server, "a")
        lease = mine.allocate(510 * MIB)
        refusal = operated.refused(lambda: operated.load(name, role="reranking"))
        assert refusal.reason == "GPU_MEMORY_EXHAUSTED"
        assert f"leases hold {510 * MIB}" in refusal.message
        mine.release(lease.lease_id)
        operated.load(name, role="reranking")
        assert operated.score("dose", "The dose was 5 mg.") == operated.score("dose", "The dose was 5 mg.")


def audit(server: LocalServer, outcome: str | None = None) -> list[dict[str, Any]]:
    """The audit of leases, in order."""
    lines = [line for line in server.events() if line.get("target") == "audit"]
    return [line for line in lines if outcome in {None, line["outcome"]}]
