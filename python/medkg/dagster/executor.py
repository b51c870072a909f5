"""`gpu_fail_fast`: an executor under which a GPU failure ends the run at once.

A failed step does not stop a Dagster run: siblings finish, and independent steps even start. That wastes hours when
the accelerator they all need is gone. The wrapper passes every event of the wrapped executor on. At the first
step that failed for the GPU it

1. tags the run `dagster/max_retries=0`, so that the daemon does not launch it again. An executor's error counts as an
   exception of the run, which `retry_on_asset_or_op_failure: false` does not cover, so the tag is needed, and it must
   be there before the run ends;
2. interrupts the processes of the other steps and waits until they are gone;
3. raises SIGTERM in its own process, where Dagster's handler is installed. The wrapped executor then does what it does
   for Terminate in the UI: it starts nothing more and frees the pool slots. Throwing an error into it instead leaves
   the slots taken. It would also interrupt the processes itself, but through an event in shared memory, which waits for
   ever if a process that listens for it ends at that moment (`multiprocessing.Condition.notify` counts on every sleeper
   to wake up). The process whose step has just failed does exactly that, so by then none may be left;
4. turns the interruption into a `GpuRunFailure`, which names the step. The run ends as FAILURE: failure sensors fire.

Where there is no such handler (the run does not execute in a main thread) it throws, waits for the children and frees
the slots itself. Re-executions inherit the tag: one made by hand from the UI runs once and is not retried either.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from medkg.dagster.failure_events import failure_class_of, failure_message
from medkg.dagster.failures import gpu_run_failure_message
from medkg.dagster.run_failure import NO_RELAUNCH
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.process import BaseProcess

    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig

_CHILD_EXIT_WAIT: Final = 10.0


def _with_forkserver(config: Mapping[str, object]) -> dict[str, object]:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return dict(config)
    return {**config, "start_method": {"forkserver": {"preload_modules": ["medkg.dagster.preload"]}}}


forkserver_executor: Final[dg.ExecutorDefinition] = dg.multiprocess_executor.configured(
    _with_forkserver,
    name="medkg_forkserver",
    config_schema={"max_concurrent": dg.Field(dg.Noneable(int), default_value=None, description="Steps at once.")},
    description="Dagster's multiprocess executor; what the steps import is imported once for a run.",
)
"""Dagster's multiprocess executor with quick steps: forked from a process that has Dagster and Docling imported."""


class GpuRunFailure(Exception):  # noqa: N818 -- a run that failed, in Dagster's own word
    """A step failed for the GPU: the run was ended and will not be launched again."""


def gpu_fail_fast(executor: dg.ExecutorDefinition = dg.multi_or_in_process_executor) -> dg.ExecutorDefinition:
    """Wraps an executor so that a GPU failure in any step fails the whole run at once, with no retry.

    Args:
        executor: Any executor definition; its configuration schema stays as it is. By default Dagster's own default.

    Raises:
        ValueError: It has no creation function.
    """
    create = executor.executor_creation_fn
    if create is None:
        msg = f"executor {executor.name!r} has no creation function, so there is nothing to wrap"
        raise ValueError(msg)

    def create_fail_fast(init_context: dg.InitExecutorContext) -> dg.Executor:
        return _FailFastExecutor(create(init_context))

    return dg.ExecutorDefinition(
        name=f"{executor.name}_gpu_fail_fast",
        config_schema=cast("Any", executor.config_schema),  # a resolved schema is taken too; its type does not say so
        requirements=executor.get_requirements,
        executor_creation_fn=create_fail_fast,
        description=f"{executor.description or executor.name} A GPU failure in any step fails the whole run at once.",
    )


class _FailFastExecutor(dg.Executor):
    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> RetryMode:
        return self._inner.retries

    @property
    def step_dependency_config(self) -> StepDependencyConfig:
        return self._inner.step_dependency_config

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        children_before = set(multiprocessing.active_children())
        events = iter(self._inner.execute(plan_context, execution_plan))
        failure: GpuRunFailure | None = None
        not_started: str | None = None
        try:
            for event in events:
                yield event
                if failure is not None:
                    continue
                if event.is_resource_init_failure or (not_started is not None and event.step_key == not_started):
                    # What comes next is the step's failure for it. It asked the GPU for nothing: never a GPU failure.
                    not_started = event.step_key if event.is_resource_init_failure else None
                    continue
                failure = _gpu_failure(event)
                if failure is None:
                    continue
                plan_context.instance.add_run_tags(plan_context.run_id, NO_RELAUNCH)
                if _dagster_handles_sigterm():
                    _interrupt_children(children_before, failed=event.pid)
                    signal.raise_signal(signal.SIGTERM)
                else:
                    try:
                        yield from _throw(events, failure)
                    finally:
                        _wait_for_children(children_before)
                        plan_context.instance.event_log_storage.free_concurrency_slots_for_run(plan_context.run_id)
        except (Exception, DagsterExecutionInterruptedError) as error:
            # Interrupted, or a sibling that died while it was: the GPU is the reason the run ended, so it is named.
            if failure is None or error is failure:
                raise
            raise failure from error
        if failure is not None:
            raise failure


def _gpu_failure(event: dg.DagsterEvent) -> GpuRunFailure | None:
    """The failure of the run that this event means, if it is a step's GPU failure.

    A step that lets medkg's error through as it is counts too, also when a `RetryPolicy` is about to run it again.
    """
    if failure_class_of(event) is not FailureClass.GPU:
        return None
    return GpuRunFailure(gpu_run_failure_message(event.step_key or "unknown", failure_message(event)))


def _dagster_handles_sigterm() -> bool:
    """Whether SIGTERM, raised here, reaches the wrapped executor as a captured interrupt instead of killing us."""
    handler = signal.getsignal(signal.SIGTERM)
    return (
        threading.current_thread() is threading.main_thread()
        and getattr(handler, "__module__", None) == "dagster._utils.interrupts"
    )


def _throw(events: Iterator[dg.DagsterEvent], failure: GpuRunFailure) -> Iterator[dg.DagsterEvent]:
    """Throws into the wrapped executor and passes on what it still has to say; ends by raising `failure`."""
    throw = getattr(events, "throw", None)
    if throw is None:
        raise failure
    yield throw(failure)
    yield from events


def _interrupt_children(before: set[BaseProcess], failed: int | None) -> None:
    """Interrupts the steps' processes and waits until they are gone.

    The one whose step failed has nothing left to interrupt: it gets the time to end. One that does not obey is left to
    the wrapped executor.
    """
    children = set(multiprocessing.active_children()) - before
    for child in children:
        if child.pid is not None and child.pid != failed and child.is_alive():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGINT)
    deadline = time.monotonic() + _CHILD_EXIT_WAIT
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))


def _wait_for_children(before: set[BaseProcess]) -> None:
    """Waits until the interrupted steps' processes are gone, so that no freed slot is still in use.

    Nobody reads their events any more, so one that hangs on its way out is ended: it would hold this process for ever.
    """
    deadline = time.monotonic() + _CHILD_EXIT_WAIT
    for child in set(multiprocessing.active_children()) - before:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join()
