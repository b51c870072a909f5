"""The GPU health sensor on real servers and a real instance: it holds the pool back, gives it back, and is calm."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from medkg.dagster import GpuServicesResource
from medkg.dagster.sensors import gpu_health_sensor
from medkg.dagster.sensors.gpu_health import Health
from medkg.dagster.sensors.pool_hold import hold_pool, is_held, release_pool
from medkg.local import LocalServer
from tests.server.played import PlayedGpu
from tests.services import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.requirement("isolation 11.5")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


def tick(
    instance: dg.DagsterInstance, address: str | list[str], cursor: str | None = None, **options: Any
) -> tuple[str, Any]:
    """One look; the cursor after it, and what came of it."""
    addresses = [address] if isinstance(address, str) else address
    sensor = gpu_health_sensor(**options)
    resources = {"gpu_services": GpuServicesResource(addresses=addresses)}
    with dg.build_sensor_context(instance, cursor=cursor, resources=resources) as context:
        done = sensor.evaluate_tick(context)
    return str(done.cursor), done


def limit(instance: dg.DagsterInstance) -> int | None:
    return {one.name: one.limit for one in instance.event_log_storage.get_pool_limits()}.get("gpu")


def test_the_pool_is_held_while_the_gpu_is_gone_and_gets_its_limit_back(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    played = PlayedGpu(tmp_path)

    def serve() -> LocalServer:
        log = tmp_path / "log.jsonl"
        return LocalServer(
            played.binary, device="cuda", services=("gpu",), log_path=log, arguments=("--gpu-lost-grace", "300")
        ).start()

    instance.event_log_storage.set_concurrency_slots("gpu", 3)
    server = serve()
    try:
        cursor, done = tick(instance, server.address)
        assert json.loads(cursor)["state"] == "ready"
        (observed,) = done.asset_events
        assert observed.metadata["medkg/gpu_state"].value == "ready"
        played.xid(79)
        with socket.socket():  # the latch closes within a second of the event
            status = GpuServicesResource(address=server.address, tenant="clinic").connect()
            watch = status.gpu.watch_status(timeout=30)
            assert any(one.state == "unavailable" for one in watch)
            watch.close()
            status.close()
        cursor, done = tick(instance, server.address, cursor)
        assert limit(instance) == 3, "one look is not enough"
        assert "lost for 1 looks" in done.skip_message
        cursor, done = tick(instance, server.address, cursor)
        assert limit(instance) == 0
        (observed,) = done.asset_events
        assert observed.metadata["medkg/gpu_state"].value == "lost"
        (row,) = observed.metadata["medkg/servers"].records
        assert "Xid 79" in row.data["detail"]
        cursor, done = tick(instance, server.address, cursor)
        assert done.asset_events == []
    finally:
        server.kill()
    server = serve()
    try:
        for _ in range(2):
            cursor, _ = tick(instance, server.address, cursor)
            assert limit(instance) == 0
        cursor, done = tick(instance, server.address, cursor)
        assert limit(instance) == 3
        assert "has its limit back" in done.skip_message
        assert not is_held(instance, "gpu")
    finally:
        server.kill()


def test_a_server_without_a_gpu_is_lost_and_one_ready_server_is_enough(
    instance: dg.DagsterInstance, start_server: Callable[..., LocalServer], server: LocalServer
) -> None:
    without = start_server(
        services=("gpu",), embedding_models={}, reranking_models={}, device="cuda", env={"CUDA_VISIBLE_DEVICES": ""}
    )
    cursor, _ = tick(instance, without.address, lost_after=1)
    assert json.loads(cursor)["state"] == "lost"
    assert limit(instance) == 0
    cursor, done = tick(instance, [without.address, server.address], cursor, ready_after=1)
    assert limit(instance) is None, "it had no limit of its own before"
    states = {row.data["address"]: row.data["state"] for row in done.asset_events[0].metadata["medkg/servers"].records}
    assert states == {without.address: "lost", server.address: "ready"}
    without.stop()


def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(instance: dg.DagsterInstance) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        addresses = [f"http://127.0.0.1:{port}" for port in (mute.getsockname()[1], free_port())]
        cursor, done = tick(instance, addresses, lost_after=1, deadline=0.5)
    assert json.loads(cursor)["state"] == "silent"
    assert limit(instance) == 0
    assert "pool gpu is held at 0" in done.skip_message


@pytest.mark.parametrize("wrong", [{"deadline": 6.0}, {"deadline": 0.0}, {"lost_after": 0}, {"ready_after": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        gpu_health_sensor(**wrong)


def test_a_gpu_that_comes_and_goes_needs_longer_each_time() -> None:
    health = Health(state="ready")
    now = 0.0
    needed = []
    for _ in range(3):
        while not health.take("lost", now, lost_after=2, ready_after=3):
            now += 15
        looks = 1
        while not health.take("ready", now, lost_after=2, ready_after=3):
            looks, now = looks + 1, now + 15
        needed.append(looks)
    assert needed == [3, 6, 9]
    assert not health.take("lost", now, lost_after=2, ready_after=3)
    assert not health.take("ready", now, lost_after=2, ready_after=3), "a single look in between changes nothing"
    now += 3600
    while not health.take("lost", now, lost_after=2, ready_after=3):
        pass
    assert len(health.losses) == 1, "what was more than an hour ago is forgotten"


def test_the_limit_is_remembered_once_and_one_set_meanwhile_stays(instance: dg.DagsterInstance) -> None:
    storage = instance.event_log_storage
    storage.set_concurrency_slots("gpu", 5)
    hold_pool(instance, "gpu")
    hold_pool(instance, "gpu")  # the daemon died before it stored the cursor
    assert release_pool(instance, "gpu") == 5
    assert limit(instance) == 5
    hold_pool(instance, "gpu")
    storage.set_concurrency_slots("gpu", 1)
    release_pool(instance, "gpu")
    assert limit(instance) == 1
    assert release_pool(instance, "gpu") is None
    assert limit(instance) == 1
