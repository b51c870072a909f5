"""What Dagster does by itself, where it decides how medkg ends a run: each way not taken, and what is wrong with it.

Nothing of medkg is at work here. When one of these fails after an update of Dagster, the reason for that part of
`gpu_fail_fast` and `fail_run` is gone, and a simpler way may be open.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor

from .deployment import DEADLINE
from .launched import CodeServer, Launched, code_server

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = Path(__file__).with_name("stock_jobs.py")
pytestmark = pytest.mark.requirement("isolation 11.4")


@pytest.mark.parametrize("executor", ["in_process", pytest.param("multiprocess", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("raised", "attempts"), [("failure", 1), ("interruption", 2)])
def test_a_step_cannot_end_its_run(raised: str, attempts: int, executor: str) -> None:
    """`Failure(allow_retries=False)` holds for its own step only, and an interruption is retried like any error."""
    overrides = {"telemetry": {"enabled": False}, "run_retries": {"enabled": True, "max_retries": 2}}
    with dg.DagsterInstance.local_temp(overrides=overrides) as instance:
        result = dg.execute_job(
            ReconstructableJob.for_file(str(JOBS), "beside_others_job"),
            instance=instance,
            run_config={
                "ops": {"a_failing_step": {"config": raised}},
                "execution": {"config": {executor: {} if executor == "in_process" else {"max_concurrent": 1}}},
            },
            raise_on_error=False,
        )
        kinds = [(event.event_type_value, event.step_key) for event in result.all_events]
        run = instance.get_run_by_id(result.run_id)
    assert run is not None
    begun = kinds.count(("STEP_START", "a_failing_step")) + kinds.count(("STEP_RESTARTED", "a_failing_step"))
    assert begun == attempts
    assert ("STEP_SUCCESS", "after") in kinds, "what was independent of it started and ended"
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/will_retry"] == "true", "and the daemon launches it all again"


@pytest.mark.slow
def test_a_failure_for_good_is_not_heard_while_a_resource_starts() -> None:
    with dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}}) as instance:
        job = ReconstructableJob.for_file(str(JOBS), "needing_job")
        result = dg.execute_job(job, instance=instance, raise_on_error=False)
        assert len([event for event in result.all_events if event.is_resource_init_failure]) == 2


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeServer]:
    with code_server(tmp_path_factory.mktemp("code")) as running:
        yield running


@pytest.fixture
def at_work(code: CodeServer, tmp_path: Path) -> Iterator[Launched]:
    """A run with a step at work, in processes of its own."""
    run = code.launch("stock_at_work", tmp_path / "marks")
    run.wait_for("sibling")
    yield run
    (run.marks / "nobody-leaves-this-mark").touch()  # a step that was not interrupted goes on and ends


def heard(code: CodeServer, run: Launched) -> bool:
    """Whether a sensor of failed runs is told of it."""
    before = RunStatusSensorCursor(record_id=-1).to_json()
    repository = code.projects.deployment.get_repository_def()
    context = dg.build_sensor_context(code.instance, cursor=before, repository_def=repository)
    for _ in code.instance.get_runs():  # one failed run is told in each tick
        done = code.projects.tells_failures.evaluate_tick(context)
        context = dg.build_sensor_context(code.instance, cursor=done.cursor, repository_def=repository)
    return run.left(f"sensor-{run.run_id}")


@pytest.mark.slow
def test_a_run_that_is_only_terminated_is_cancelled_and_nobody_is_told(code: CodeServer, at_work: Launched) -> None:
    assert code.instance.run_launcher.terminate(at_work.run_id)
    at_work.wait_for_end()
    assert at_work.status == "CANCELED"
    assert not at_work.left("sibling-done")
    assert not heard(code, at_work)


@pytest.mark.slow
def test_a_run_that_is_told_failed_first_can_not_be_terminated_and_works_on(
    code: CodeServer, at_work: Launched
) -> None:
    code.instance.report_run_failed(at_work.run, "lost")
    assert not code.instance.run_launcher.terminate(at_work.run_id)
    (at_work.marks / "nobody-leaves-this-mark").touch()
    at_work.wait_for("sibling-done")
    at_work.wait_for("after-sibling-done")


@pytest.mark.slow
def test_a_run_whose_process_gets_sigterm_is_launched_again(code: CodeServer, at_work: Launched) -> None:
    os.kill(int(at_work.events(dg.DagsterEventType.RUN_START)[0].pid or 0), signal.SIGTERM)
    at_work.wait_for_end()
    assert at_work.status == "FAILURE"
    assert at_work.run.tags["dagster/will_retry"] == "true"


@pytest.mark.slow
def test_an_executor_that_is_thrown_into_leaves_its_slot_taken() -> None:
    with dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}}) as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        job = ReconstructableJob.for_file(str(JOBS), "thrown_into_job")
        result = dg.execute_job(job, instance=instance, raise_on_error=False)
        assert not result.success
        for child in multiprocessing.active_children():  # it was interrupted
            child.join(DEADLINE)
            assert not child.is_alive()
        (slot,) = instance.event_log_storage.get_concurrency_info("gpu").claimed_slots
        assert slot.run_id == result.run_id
