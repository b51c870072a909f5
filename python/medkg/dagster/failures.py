"""What a failed call does to a step: retry it, fail it, or (a GPU failure) fail the whole run.

Dagster has no retry filter by exception type: a `RetryPolicy` reruns a permanent failure as gladly as a passing one. So
medkg's errors are turned into the two exceptions Dagster obeys: `RetryRequested` for a fault of the network, with the
wait that the server or the circuit breaker asked for, and `Failure(allow_retries=False)` for everything else. The class
of the failure travels in its metadata; `gpu_fail_fast` reads it there and ends the run.

The breaker lives in the step's process and dies with it. When it is open the step is left, with the cool-down as the
wait, instead of sleeping in it: a sleeping step would hold a process and a slot of its pool.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import dagster as dg

from medkg import errors
from medkg.dagster.step import StepIdentity
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from medkg.dagster.step import StepContext

FAILURE_CLASS_KEY: Final = "medkg/failure_class"
"""Metadata key of a failed step that holds a `FailureClass`."""

STEP_RETRIES: Final = 3
"""Retries of a step after faults of the network, where nothing else is asked for."""
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 30.0

_NOT_LISTED: Final = {"message", "retryable", "http_status", "field_violations"}
"""Parts of an error that are in the failure's description, or decided here, or have a form of their own."""


@contextmanager
def step_failures(context: StepContext | None = None, *, max_retries: int = STEP_RETRIES) -> Iterator[None]:
    """Turns medkg's errors into what Dagster does about them; for the body of an asset or op.

    `GpuServicesResource.for_run` does this already. A plain function can be decorated with `@step_failures()`; a
    generator needs the `with` form, because a decorator is done before the first `yield`.

    Args:
        context: The step's context; by default the one that is running.
        max_retries: Retries of the step after a fault of the network.

    An exception that hides a medkg error (in its cause, its context or its group) counts as that error. One that
    Dagster obeys already, such as a `dg.Failure` of yours, goes through, unless a GPU failure is behind it.

    Raises:
        dg.RetryRequested: The fault is of the network. Waits as the server or the breaker asked, else 1 s doubling to
            at most 30 s. Its cause is a `dg.Failure`, whose metadata Dagster keeps.
        dg.Failure: Every other `MedkgError`; its `allow_retries` is False.
    """
    try:
        yield
    except Exception as raised:
        error = _behind(raised)
        if error is None:
            raise
        step = StepIdentity.of(context or dg.OpExecutionContext.get())
        failure = _failure(step, error, raised)
        if error.failure_class is not FailureClass.NETWORK:
            raise failure from raised
        failure.__cause__ = raised
        raise dg.RetryRequested(max_retries=max_retries, seconds_to_wait=_wait(step, error)) from failure


def _behind(raised: BaseException) -> errors.MedkgError | None:
    """The failed call that an exception tells of: a GPU failure wherever it hides, else the outermost one."""
    if isinstance(raised, dg.Failure) and FAILURE_CLASS_KEY in raised.metadata:
        return None  # made here already, by a block inside this one
    seen: list[BaseException] = [raised]
    found: list[errors.MedkgError] = []
    for error in seen:
        if isinstance(error, errors.MedkgError):
            found.append(error)
        members = getattr(error, "exceptions", ())  # an ExceptionGroup's, which Python 3.10 does not know
        linked = [error.__cause__, error.__context__, *(members if isinstance(members, (tuple, list)) else ())]
        seen.extend(one for one in linked if isinstance(one, BaseException) and not _is_in(one, seen))
    for error in found:
        if error.failure_class is FailureClass.GPU:
            return error
    if isinstance(raised, (dg.Failure, dg.RetryRequested)):
        return None
    return found[0] if found else None


def _is_in(error: BaseException, seen: Sequence[BaseException]) -> bool:
    return any(error is other for other in seen)


def failure_metadata(error: errors.MedkgError) -> Mapping[str, dg.MetadataValue]:
    """What an error knows about the failed call, under keys `medkg/error.*`; what it does not know is left out."""
    metadata: dict[str, dg.MetadataValue] = {
        f"medkg/error.{name}": dg.MetadataValue.float(value)
        if isinstance(value, float)
        else dg.MetadataValue.int(value)
        if isinstance(value, int)
        else dg.MetadataValue.text(str(value))
        for name, value in error.details().items()
        if name not in _NOT_LISTED and value is not None and value != ""
    }
    if error.field_violations:
        metadata["medkg/error.fields"] = dg.MetadataValue.md(
            "\n".join(f"- `{where}`: {what}" for where, what in error.field_violations)
        )
    return metadata


def gpu_failure_title(step_key: str) -> str:
    """How every report of a GPU failure opens."""
    return f"GPU failure in step {step_key}"


def gpu_run_failure_message(step_key: str, description: str) -> str:
    """Why a run was ended for a step's GPU failure: names the step, the GPU's state, the server and the request."""
    title = gpu_failure_title(step_key)
    return f"{title}: run failed, no retry. {description.removeprefix(title).removeprefix(':').strip()}".rstrip()


def is_gpu_failure(raised: BaseException) -> bool:
    """Whether a step's exception tells of the GPU: a failure of that class, or one that hides a medkg error of it."""
    if isinstance(raised, dg.Failure) and FAILURE_CLASS_KEY in raised.metadata:
        return raised.metadata[FAILURE_CLASS_KEY].value == FailureClass.GPU.value
    error = _behind(raised)
    return error is not None and error.failure_class is FailureClass.GPU


def _failure(step: StepIdentity, error: errors.MedkgError, raised: Exception) -> dg.Failure:
    titles = {
        FailureClass.GPU: gpu_failure_title(step.step_key),
        FailureClass.NETWORK: f"Network failure in step {step.step_key}",
    }
    title = titles.get(error.failure_class, f"Failed call in step {step.step_key}")
    called = [
        f"{label} {value}"
        for label, value in (("server", error.endpoint), ("request", error.request_id))
        if value and value not in str(error)
    ]
    suffix = f" ({', '.join(called)})" if called else ""
    outer = "" if raised is error else f"; raised as {type(raised).__name__}: {raised}"
    return dg.Failure(
        description=f"{title}: {error}{suffix}{outer}",
        metadata={
            FAILURE_CLASS_KEY: dg.MetadataValue.text(error.failure_class.value),
            "medkg/step": dg.MetadataValue.text(step.step_key),
            **failure_metadata(error),
        },
        allow_retries=False,
    )


def _wait(step: StepIdentity, error: errors.MedkgError) -> float:
    if error.retry_after is not None:
        return float(error.retry_after)
    return min(_FIRST_WAIT * 2.0**step.retry_number, _LONGEST_WAIT)
