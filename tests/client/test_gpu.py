"""GpuClient against a real gpu-server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import medkg

if TYPE_CHECKING:
    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.GpuClient:
    return medkg.GpuClient(address=server.address, tenant="gpu")


@pytest.mark.requirement("isolation 5.2")
@pytest.mark.requirement("isolation 6.4")
def test_the_server_says_what_it_computes_on(client: medkg.GpuClient) -> None:
    status = client.status()
    assert (status.state, status.requested_device, status.active_device) == ("ready", "cpu", "cpu")
    assert set(status.roles) == {"gpu", "embedding", "reranking", "vector"}
    assert status.uptime > 0
    [device] = client.devices()
    assert (device.id, device.kind, device.active) == ("cpu", "cpu", True)
    assert device.total_memory_bytes > 0


@pytest.mark.requirement("isolation 5.4")
@pytest.mark.requirement("observability 3.1")
def test_a_missing_gpu_is_said_at_once_and_never_opens_the_breaker(server: LocalServer) -> None:
    client = medkg.GpuClient(address=server.address, tenant="gpu", breaker_failures=1)
    for _ in range(3):
        with pytest.raises(medkg.GpuNotAvailableError) as caught:
            client.allocate(1 << 20)
        error = caught.value
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "GPU_UNAVAILABLE")
        assert (error.attempts, error.retryable, error.breaker_state) == (1, False, "closed")
    assert client.status().state == "ready"


def test_wrong_arguments_are_named(client: medkg.GpuClient) -> None:
    with pytest.raises(medkg.ValidationError, match="ttl"):
        client.allocate(1, ttl=-1.0)
    with pytest.raises(medkg.MedkgError):
        client.release("no-such-lease")


def test_what_is_no_lease_is_neither_renewed_nor_released(server: LocalServer, client: medkg.GpuClient) -> None:
    async def renew() -> None:
        await medkg.AsyncGpuClient(address=server.address, tenant="gpu").renew("no-such-lease", ttl=60)

    calls = (
        lambda: client.renew("no-such-lease"),
        lambda: client.release("no-such-lease"),
        lambda: asyncio.run(renew()),
    )
    for call in calls:
        with pytest.raises(medkg.NotFoundError, match="unknown, expired or released") as caught:
            call()
        assert caught.value.reason == "LEASE_NOT_FOUND"
    for ttl in (-1.0, 0.5, 1e9):
        with pytest.raises(medkg.ValidationError, match="ttl"):
            client.renew("no-such-lease", ttl=ttl)


def test_a_role_that_the_server_does_not_have_is_told_apart(start_server) -> None:
    gpu_only = start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)
    with pytest.raises(medkg.ServiceError, match="role") as caught:
        medkg.VectorClient(address=gpu_only.address, tenant="gpu").collections()
    assert caught.value.code == "UNIMPLEMENTED"
