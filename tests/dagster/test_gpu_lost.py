"""A GPU that is lost in the middle of a run, while a sibling works: what becomes of the run, launch by launch.

The runs are in process, with a process for each step, and launched through webserver and daemon, under `gpu_fail_fast`
and, with the hook, under a stock executor. Each test is one promise, and holds for all of them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg
import pytest
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor

from medkg.local import LocalServer
from tests.server.played import PlayedGpu

from .conftest import Lab, load_projects
from .deployment import Deployment, deployed, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEP = "embed_until_the_gpu_is_lost"
pytestmark = [pytest.mark.requirement("isolation 11.1"), pytest.mark.requirement("isolation 11.4")]


@dataclass(frozen=True)
class Ended:
    """A run that lost its GPU, and the instance it ran on."""

    instance: dg.DagsterInstance
    run: dg.DagsterRun
    marks: Path
    server: str
    deployment: Deployment | None

    def events(self, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
        records = self.instance.get_records_for_run(self.run.run_id, of_type=kind).records
        return [event for record in records if (event := record.event_log_entry.dagster_event) is not None]

    def left(self, mark: str) -> int:
        path = self.marks / mark
        return len(path.read_text().splitlines()) if path.exists() else 0

    def reason(self) -> str:
        (event,) = self.events(dg.DagsterEventType.RUN_FAILURE)
        error = event.job_failure_data.error if event.event_specific_data else None
        return f"{event.message} {error.message if error else ''}"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployment")) as running:
        running.instance.event_log_storage.set_concurrency_slots("gpu", 2)
        yield running


LAUNCHES = {
    "in process": ("lost_gpu_in_process", False),
    "multiprocess": ("lost_gpu", False),
    "webserver": ("lost_gpu", True),
    "webserver, stock executor": ("lost_gpu_stock", True),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * launched) for name, (_, launched) in LAUNCHES.items()],
)
def ended(
    request: pytest.FixtureRequest, minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ended]:
    """The run, ended: the GPU falls off the bus (Xid 79) once the step has had answers and its sibling is at work."""
    job, launched = LAUNCHES[request.param]
    folder = tmp_path_factory.mktemp("lost")
    marks = folder / "marks"
    marks.mkdir()
    played = PlayedGpu(folder)
    server = LocalServer(
        played.binary,
        device="cuda",
        services=("gpu", "embedding"),
        embedding_models={"all-MiniLM-L6-v2": minilm_dir},
        threads=1,
        log_path=folder / "log.jsonl",
        arguments=("--dtype", "f32", "--gpu-lost-grace", "300"),
    ).start()
    if "in process" in request.param:
        (marks / "sibling").touch()  # steps come one after the other there

    def lose() -> None:
        wait_until((marks / "embedded").exists, "no answer came before the loss")
        played.xid(79)

    services = {"address": server.address, "tenant": "clinic"}
    try:
        with ThreadPoolExecutor(1) as threads:
            losing = threads.submit(lose)
            if launched:
                deployment: Deployment = request.getfixturevalue("deployment")
                config = {"resources": {"gpu_services": {"config": services}}}
                run_id = deployment.launch(job, config=config, tags={"medkg-test/marks": str(marks)})
                losing.result()
                yield Ended(deployment.instance, deployment.wait_for_end(run_id), marks, server.address, deployment)
                return
            overrides = {"telemetry": {"enabled": False}, "run_retries": {"enabled": True, "max_retries": 2}}
            with dg.DagsterInstance.local_temp(str(folder), overrides=overrides) as instance:
                instance.event_log_storage.set_concurrency_slots("gpu", 2)
                outcome = Lab(instance, load_projects(), marks).run(f"{job}_job", services=services)
                losing.result()
                run = instance.get_run_by_id(outcome.run_id)
                assert run is not None
                yield Ended(instance, run, marks, server.address, None)
    finally:
        server.kill()


def test_the_sibling_is_interrupted_and_nothing_new_starts(ended: Ended) -> None:
    assert ended.left("sibling-done") == 0
    assert ended.left("after-sibling-done") == 0
    started = {event.step_key for event in ended.events(dg.DagsterEventType.STEP_START)}
    assert STEP in started
    assert "after_sibling" not in started


def test_neither_the_step_nor_its_sibling_is_retried_by_its_policy(ended: Ended) -> None:
    assert ended.left("embed") == 1
    assert ended.events(dg.DagsterEventType.STEP_RESTARTED) == []
    assert STEP not in {event.step_key for event in ended.events(dg.DagsterEventType.STEP_UP_FOR_RETRY)}


def test_the_run_ends_as_a_failure_and_not_as_cancelled(ended: Ended) -> None:
    assert ended.run.status is dg.DagsterRunStatus.FAILURE
    assert len(ended.events(dg.DagsterEventType.RUN_FAILURE)) == 1


def test_its_reason_names_the_gpu_the_step_the_server_and_the_request(ended: Ended) -> None:
    (failed,) = (e for e in ended.events(dg.DagsterEventType.STEP_FAILURE) if e.step_key == STEP)
    reported = failed.step_failure_data.user_failure_data
    assert reported is not None
    told = {key: value.value for key, value in reported.metadata.items()}
    assert told["medkg/failure_class"] == "GPU"
    assert told["medkg/error.reason"] == "GPU_LOST"
    assert told["medkg/error.attempts"] == 1
    reason = ended.reason()
    assert f"GPU failure in step {STEP}: run failed, no retry" in reason
    assert "Xid 79" in reason
    assert ended.server.removeprefix("http://") in reason
    assert str(told["medkg/error.request_id"]) in reason


def test_its_slots_in_the_pool_are_free(ended: Ended) -> None:
    storage = ended.instance.event_log_storage
    wait_until(
        lambda: not [s for s in storage.get_concurrency_info("gpu").claimed_slots if s.run_id == ended.run.run_id],
        "slots are still taken",
    )


def test_failure_sensors_fire(ended: Ended) -> None:
    told = ended.marks / f"sensor-{ended.run.run_id}"
    if ended.deployment is None:
        projects = load_projects()
        before = RunStatusSensorCursor(record_id=-1).to_json()
        context = dg.build_sensor_context(
            ended.instance, cursor=before, repository_def=projects.deployment.get_repository_def()
        )
        projects.tells_failures.evaluate_tick(context)
    wait_until(told.exists, "the failure sensor did not fire")


def test_the_daemon_does_not_launch_it_again(ended: Ended) -> None:
    assert ended.run.tags["dagster/max_retries"] == "0"
    assert ended.instance.get_run_by_id(ended.run.run_id).tags["dagster/will_retry"] == "false"  # type: ignore[union-attr]
    if ended.deployment is None:
        return
    # The daemon takes failed runs in their order: when it has launched a later one again, it has passed this one by.
    later = ended.deployment.launch("plain_failure")
    wait_until(lambda: ended.deployment.relaunches(later), "the daemon launches nothing again")  # type: ignore[union-attr]
    assert ended.deployment.relaunches(ended.run.run_id) == []
