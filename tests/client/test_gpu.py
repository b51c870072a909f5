"""GpuClient against a real gpu-server."""

from __future__ import annotations

import asyncio
import queue
import signal
from concurrent import futures
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.GpuClient:
    return medkg.GpuClient(address=server.address, tenant="gpu")


@pytest.mark.requirement("isolation 2.2")
@pytest.mark.requirement("isolation 5.2")
@pytest.mark.requirement("isolation 6.4")
def test_the_server_says_what_it_computes_on(client: medkg.GpuClient) -> None:
    status = client.status()
    assert (status.state, status.requested_device, status.active_device) == ("ready", "cpu", "cpu")
    assert set(status.roles) == {"gpu", "embedding", "reranking", "vector"}
    assert status.uptime > 0
    # Of a GPU only.
    assert (status.memory_pressure, status.used_memory_bytes, status.total_memory_bytes) == (None, None, 0)
    [device] = client.devices()
    assert (device.id, device.kind, device.active) == ("cpu", "cpu", True)
    assert device.total_memory_bytes > 0


def test_one_device_is_told_in_detail(server: LocalServer, client: medkg.GpuClient) -> None:
    async def ask() -> medkg.DeviceDetails:
        return await medkg.AsyncGpuClient(address=server.address, tenant="gpu").device("cpu")

    told = client.device("cpu")
    assert told == asyncio.run(ask())
    [listed] = client.devices()
    assert (told.device, told.driver_version, told.leases) == (listed, "", [])
    assert (told.utilization_percent, told.power_milliwatts, told.uncorrected_ecc_errors) == (None, None, None)
    assert told.model_memory_bytes > 0
    with pytest.raises(medkg.ValidationError, match="ListDevices") as caught:
        client.device("cuda:7")
    [(field, _)] = caught.value.field_violations
    assert field == "device"


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


def a_server_of_its_own(start_server: Callable[..., LocalServer]) -> LocalServer:
    return start_server(services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None)


def test_a_watch_tells_the_status_and_ends_when_the_server_stops(start_server: Callable[..., LocalServer]) -> None:
    server = a_server_of_its_own(start_server)
    watch = medkg.GpuClient(address=server.address, tenant="gpu").watch_status()
    status = next(watch)
    assert (status.state, status.active_device) == ("ready", "cpu")
    with futures.ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, watch)
        assert server.stop() == 0
        assert rest.result(timeout=30) == []
    assert next(watch, None) is None


def test_an_awaitable_watch_ends_when_the_server_stops(start_server: Callable[..., LocalServer]) -> None:
    server = a_server_of_its_own(start_server)

    async def work() -> list[str]:
        async with medkg.AsyncGpuClient(address=server.address, tenant="gpu").watch_status() as watch:
            states = [(await anext(watch)).state]
            stopped = asyncio.create_task(asyncio.to_thread(server.stop))
            states += [status.state async for status in watch]
            assert await stopped == 0
            return states

    assert asyncio.run(asyncio.wait_for(work(), 60)) == ["ready"]


def test_a_watch_may_be_closed_by_another_thread_or_task_while_one_waits(server: LocalServer) -> None:
    watch = medkg.GpuClient(address=server.address, tenant="gpu").watch_status()
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def follow() -> None:
        for status in watch:
            told.put(status.state)
        told.put("over")

    with futures.ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        assert told.get(timeout=30) == "ready"
        watch.close()
        assert told.get(timeout=30) == "over"
        following.result(timeout=30)
    watch.close()
    assert list(watch) == []

    async def work() -> None:
        watch = medkg.AsyncGpuClient(address=server.address, tenant="gpu").watch_status()
        assert (await anext(watch)).state == "ready"
        waiting = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0)
        await watch.aclose()
        assert await waiting is None
        # A task that gives up waiting gives up nothing else.
        watch = medkg.AsyncGpuClient(address=server.address, tenant="gpu").watch_status()
        assert (await anext(watch)).state == "ready"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(watch), 0.05)
        await watch.aclose()
        assert [status async for status in watch] == []

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_watch_outlasts_its_timeout_and_a_server_that_dies_is_an_error(
    start_server: Callable[..., LocalServer],
) -> None:
    server = a_server_of_its_own(start_server)
    with medkg.GpuClient(address=server.address, tenant="gpu").watch_status(timeout=1.0, request_id="w1") as watch:
        assert next(watch).state == "ready"
        with futures.ThreadPoolExecutor(1) as pool:
            rest = pool.submit(next, watch)
            with pytest.raises(futures.TimeoutError):
                rest.result(timeout=1.5)
            server.kill()
            with pytest.raises(medkg.ServiceUnavailableError) as caught:
                rest.result(timeout=30)
        assert (caught.value.method, caught.value.request_id) == ("WatchStatus", "w1")
        assert list(watch) == []


def test_a_watch_that_cannot_begin_says_why(refusing: str, silent: str) -> None:
    with pytest.raises(medkg.ValidationError, match="tenant"):
        medkg.GpuClient(address=refusing).watch_status(tenant="no spaces")
    with pytest.raises(medkg.ServiceUnavailableError):
        next(medkg.GpuClient(address=refusing, tenant="gpu").watch_status())
    with pytest.raises(medkg.ServiceTimeoutError):
        next(medkg.GpuClient(address=silent, tenant="gpu").watch_status(timeout=0.3))


def test_a_signal_interrupts_a_watch_that_waits(script: Callable[..., Any], server: LocalServer) -> None:
    running = script(
        """
        import sys, medkg
        watch = medkg.GpuClient(address=sys.argv[1], tenant="demo").watch_status()
        try:
            print(next(watch).state, flush=True)  # from here on the signal may come
            next(watch)
        except KeyboardInterrupt:
            watch.close()
            print("interrupted", next(watch, None), flush=True)
        """,
        server.address,
    )
    assert running.line() == "ready"
    running.process.send_signal(signal.SIGINT)
    assert running.line(limit=10.0) == "interrupted None"
    done = running.finish(limit=10.0)
    assert (done.status, done.err) == (0, "")
