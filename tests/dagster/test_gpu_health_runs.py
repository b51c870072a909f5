"""The GPU health sensor ends runs that lost their GPU, under an executor of Dagster's own whose steps do not notice.

The step that is at work has its place in the pool and calls no server: neither an error of its own nor `gpu_fail_fast`
nor the hook can tell the run that the GPU is gone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from medkg.dagster import GpuServicesResource, gpu_health_sensor
from medkg.local import LocalServer
from tests.server.played import PlayedGpu

from .deployment import deployed, wait_until
from .launched import Launched, code_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.requirement("isolation 11.1"),
    pytest.mark.requirement("isolation 11.5"),
]


@contextmanager
def serving(folder: Path) -> Iterator[tuple[PlayedGpu, LocalServer]]:
    """A server with a GPU that can be lost."""
    played = PlayedGpu(folder)
    server = LocalServer(
        played.binary,
        device="cuda",
        services=("gpu",),
        log_path=folder / "log.jsonl",
        arguments=("--gpu-lost-grace", "300"),
    ).start()
    try:
        yield played, server
    finally:
        server.kill()


def limit(instance: dg.DagsterInstance) -> int | None:
    return {one.name: one.limit for one in instance.event_log_storage.get_pool_limits()}.get("gpu")


def assert_failed_for_the_gpu(run: Launched, server: LocalServer) -> None:
    """It ended as FAILURE with the GPU as its reason, its step was interrupted, and nothing of it is left."""
    assert run.status == "FAILURE"
    (failure,) = run.events(dg.DagsterEventType.RUN_FAILURE)
    assert "GPU failure in step sibling: run failed, no retry" in str(failure.message)
    assert "Xid 79" in str(failure.message)
    assert server.address in str(failure.message)
    assert run.run.tags["dagster/max_retries"] == "0"
    pool = run.instance.event_log_storage.get_concurrency_info
    wait_until(
        lambda: not [slot for slot in pool("gpu").claimed_slots if slot.run_id == run.run_id],
        "the interrupted step keeps its slot",
    )
    assert not run.left("sibling-done")
    assert {event.step_key for event in run.events(dg.DagsterEventType.STEP_START)} == {"sibling"}


def test_a_look_at_a_lost_gpu_fails_a_running_run_of_a_stock_executor(tmp_path: Path) -> None:
    sensor = gpu_health_sensor(lost_after=2, ready_after=1)
    with serving(tmp_path) as (played, server), code_server(tmp_path) as code:
        resources = {"gpu_services": GpuServicesResource(address=server.address)}
        cursor: str | None = None

        def look() -> str:
            nonlocal cursor
            with dg.build_sensor_context(code.instance, cursor=cursor, resources=resources) as context:
                done = sensor.evaluate_tick(context)
            cursor = done.cursor
            return str(done.skip_message)

        assert "GPU ready" in look()
        run = code.launch("stock_at_work", tmp_path / "marks")
        run.wait_for("sibling")
        look()
        assert run.status == "STARTED"
        played.xid(79)
        wait_until(lambda: f"run {run.run_id} failed" in look(), "the run is not failed")
        assert_failed_for_the_gpu(run, server)
        assert limit(code.instance) == 0
        server.kill()
        server.start()
        wait_until(lambda: "has its limit back" in look(), "the pool stays shut")
        assert limit(code.instance) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_daemon_s_sensor_fails_it_holds_the_next_back_and_lets_it_go(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as (played, server),
        deployed(tmp_path, MEDKG_TEST_SERVER=server.address) as deployment,
    ):
        instance = deployment.instance
        instance.event_log_storage.set_concurrency_slots("gpu", 2)

        def launch(name: str) -> Launched:
            marks = tmp_path / name
            marks.mkdir()
            run_id = deployment.launch("stock_at_work", tags={"medkg-test/marks": str(marks)})
            return Launched(instance, run_id, marks)

        deployment.turn_on("medkg_gpu_health")
        seen = dg.AssetRecordsFilter(dg.AssetKey("gpu_health"))

        def observed() -> list[str]:
            records = instance.fetch_observations(seen, limit=10, ascending=True).records
            found = [record.asset_observation for record in records]
            return [str(one.metadata["medkg/gpu_state"].value) for one in found if one is not None]

        wait_until(lambda: observed() == ["ready"], "the sensor does not look")
        first = launch("first")
        first.wait_for("sibling")
        played.xid(79)
        first.wait_for_end()
        assert_failed_for_the_gpu(first, server)
        assert observed() == ["ready", "lost"]
        assert limit(instance) == 0
        wait_until(lambda: first.left(f"sensor-{first.run_id}"), "the failure sensor did not fire")

        second = launch("second")
        # The daemon goes through the queue: when it has launched a later run, it has passed this one by.
        later = deployment.launch("plain_failure")
        wait_until(lambda: deployment.run(later).is_finished, "the daemon launches nothing any more")
        assert second.status == "QUEUED"
        server.kill()
        server.start()
        second.wait_for("sibling")
        assert limit(instance) == 2
        assert observed() == ["ready", "lost", "ready"]
        assert second.status == "STARTED"
        deployment.terminate(second.run_id)
        second.wait_for_end()
        assert first.run.tags["dagster/will_retry"] == "false"
