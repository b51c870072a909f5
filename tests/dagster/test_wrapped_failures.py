"""Failures that user code wraps: what is behind them decides, and a GPU failure is never retried."""

import sys
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

import medkg
from medkg.dagster import gpu_fail_fast, step_failures
from medkg.dagster.executor import _gpu_failure
from medkg.dagster.failure_events import failure_class_of


def lost() -> medkg.GpuLostError:
    return medkg.GpuLostError("the GPU fell off the bus", code="FAILED_PRECONDITION", reason="GPU_LOST")


def in_context() -> None:
    try:
        raise lost()
    except medkg.GpuLostError:
        msg = "could not embed"
        raise RuntimeError(msg)  # noqa: B904 - that is what is tested


def in_cause() -> None:
    msg = "could not embed"
    raise RuntimeError(msg) from lost()


def in_group() -> None:
    group: Any = vars(__import__("builtins"))["ExceptionGroup"]
    raise group("two tasks", [medkg.ServiceUnavailableError("down"), group("inner", [lost()])])


def behind_a_network_failure() -> None:
    try:
        raise lost()
    except medkg.GpuLostError:
        msg = "down"
        raise medkg.ServiceUnavailableError(msg)  # noqa: B904 - as above


def behind_a_wish_to_retry() -> None:
    try:
        raise lost()
    except medkg.GpuLostError:
        raise dg.RetryRequested(max_retries=3)  # noqa: B904 - as above


WRAPPINGS = [in_context, in_cause, behind_a_network_failure, behind_a_wish_to_retry]
GROUPS = [pytest.param(in_group, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no ExceptionGroup"))]


def run(body: Callable[[], None], *, guarded: bool) -> list[dg.DagsterEvent]:
    """The events of a run of one op that would be retried by its policy."""

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=1))
    def step(context: dg.OpExecutionContext) -> None:
        if not guarded:
            body()
        with step_failures(context):
            body()

    @dg.job
    def job() -> None:
        step()

    with dg.DagsterInstance.ephemeral() as instance:
        return list(job.execute_in_process(instance=instance, raise_on_error=False).all_events)


@pytest.mark.requirement("isolation 11.1")
@pytest.mark.parametrize("body", [*WRAPPINGS, *GROUPS])
def test_a_gpu_failure_inside_another_error_fails_the_step_for_good(body: Callable[[], None]) -> None:
    events = run(body, guarded=True)
    assert not [event for event in events if event.is_step_up_for_retry]
    (failed,) = (event for event in events if event.is_step_failure)
    reported = failed.step_failure_data.user_failure_data
    assert reported is not None
    assert reported.metadata["medkg/failure_class"].value == "GPU"
    assert "the GPU fell off the bus" in str(reported.description)
    assert _gpu_failure(failed) is not None


@pytest.mark.requirement("isolation 11.1")
@pytest.mark.parametrize("body", WRAPPINGS)
def test_the_executor_sees_it_in_an_op_without_the_guard_before_its_policy_retries(body: Callable[[], None]) -> None:
    first = next(event for event in run(body, guarded=False) if event.is_step_up_for_retry or event.is_step_failure)
    assert _gpu_failure(first) is not None


def test_a_wrapped_fault_of_the_network_is_retried_and_an_error_of_ones_own_goes_through() -> None:
    def wrapped() -> None:
        msg = "could not embed"
        raise RuntimeError(msg) from medkg.ServiceUnavailableError("down", retry_after=0.0)

    assert len([event for event in run(wrapped, guarded=True) if event.is_step_up_for_retry]) == 3

    def own() -> None:
        msg = "mine"
        raise dg.Failure(msg, allow_retries=False) from medkg.NotFoundError("gone")

    (failed,) = (event for event in run(own, guarded=True) if event.is_step_failure)
    reported = failed.step_failure_data.user_failure_data
    assert reported is not None
    assert reported.description == "mine"


@dg.resource
def pinged(_: dg.InitResourceContext) -> None:
    """A resource that calls the GPU while it starts, which medkg's own never does."""
    raise lost()


def needs_pinged_job() -> dg.JobDefinition:
    """One step that needs the resource; under the multiprocess executor its failed start is a failure of the step."""

    @dg.op(required_resource_keys={"pinged"})
    def needs_it() -> None:
        """Never starts."""

    @dg.job(resource_defs={"pinged": pinged}, executor_def=gpu_fail_fast(dg.multiprocess_executor))
    def job() -> None:
        needs_it()

    return job


def test_a_resource_that_fails_to_start_is_no_gpu_failure() -> None:
    job = ReconstructableJob.for_file(__file__, "needs_pinged_job")
    with dg.DagsterInstance.local_temp(overrides={"telemetry": {"enabled": False}}) as instance:
        result = dg.execute_job(job, instance=instance, raise_on_error=False)
        (failed,) = (event for event in result.all_events if event.is_step_failure)
        assert failure_class_of(failed) is None
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert "dagster/max_retries" not in run.tags
