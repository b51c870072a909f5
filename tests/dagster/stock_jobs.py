"""Jobs that go the ways that medkg does not go; step processes import this file by its path."""

import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

FOR_GOOD = {
    "failure": dg.Failure("lost", allow_retries=False),
    "interruption": DagsterExecutionInterruptedError("lost"),
}


@dg.op(config_schema=str, retry_policy=dg.RetryPolicy(max_retries=1))
def a_failing_step(context: dg.OpExecutionContext) -> None:
    """Fails as it is told."""
    raise FOR_GOOD[context.op_config]


@dg.op
def independent() -> int:
    """Has nothing to do with the failure."""
    return 1


@dg.op
def after(number: int) -> None:
    """Starts when the failure is long known."""


def beside_others_job() -> dg.JobDefinition:
    """A failure, and steps that do not depend on it."""

    @dg.job(executor_def=dg.multi_or_in_process_executor)
    def beside_others() -> None:
        a_failing_step()
        after(independent())

    return beside_others


@dg.resource
def fails(_: dg.InitResourceContext) -> None:
    """Fails for good while it starts."""
    raise dg.Failure("lost", allow_retries=False)


@dg.op(required_resource_keys={"fails"}, retry_policy=dg.RetryPolicy(max_retries=1))
def needs_it() -> None:
    """Never starts."""


def needing_job() -> dg.JobDefinition:
    """A step whose resource fails for good."""

    @dg.job(resource_defs={"fails": fails}, executor_def=dg.multiprocess_executor)
    def needing() -> None:
        needs_it()

    return needing


class _Throws(dg.Executor):
    """Throws into the executor it wraps as soon as a step has started."""

    def __init__(self, inner: dg.Executor) -> None:
        self._inner = inner

    @property
    def retries(self) -> Any:
        return self._inner.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        events: Any = self._inner.execute(plan_context, execution_plan)
        for event in events:
            yield event
            if event.event_type_value == "STEP_START":
                yield events.throw(RuntimeError("lost"))
                yield from events


@dg.op(pool="gpu")
def waits() -> None:
    """Works until it is interrupted."""
    while True:
        time.sleep(0.1)


def thrown_into_job() -> dg.JobDefinition:
    """A step in the pool, interrupted by what is thrown into its executor."""
    inner: Any = dg.multiprocess_executor
    executor = dg.ExecutorDefinition(
        name="throws",
        config_schema=inner.config_schema,
        requirements=inner.get_requirements,
        executor_creation_fn=lambda context: _Throws(inner.executor_creation_fn(context)),
    )

    @dg.job(executor_def=executor)
    def thrown_into() -> None:
        waits()

    return thrown_into
