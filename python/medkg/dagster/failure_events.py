"""What an event of a failed step tells: which class of failure it was, and whether the run has to end for it.

The executor, the sensors and the alerts read a run from outside the step, where only its events are. A failure that
medkg made carries its class in its metadata; of one that user code let through, the names of the errors tell it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster._core.execution.plan.objects import ErrorSource

from medkg import errors
from medkg.dagster.failures import FAILURE_CLASS_KEY
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg
    from dagster_shared.error import SerializableErrorInfo


def failure_class_of(event: dg.DagsterEvent) -> FailureClass | None:
    """The class of the failure of a step that has failed, or is about to be run again.

    Returns:
        The reported class; else that of the errors' types, a GPU failure before all others, also where another error
        hides it; else None. An error outside the step's own code, such as one while a resource starts, has
        none: Dagster runs such a step again whatever it says, and nothing was asked of the GPU yet.
    """
    if event.is_step_failure:
        error = event.step_failure_data.error
        reported = event.step_failure_data.user_failure_data
        if reported is not None and FAILURE_CLASS_KEY in reported.metadata:
            return FailureClass(str(reported.metadata[FAILURE_CLASS_KEY].value))
        if event.step_failure_data.error_source is not ErrorSource.USER_CODE_ERROR:
            return None
    elif event.is_step_up_for_retry:
        error = event.step_retry_data.error
    else:
        return None
    kinds = [getattr(errors, link.cls_name) for link in _chain(error) if link.cls_name in errors.__all__]
    classes = [kind.failure_class for kind in kinds]
    return FailureClass.GPU if FailureClass.GPU in classes else next(iter(classes), None)


def failure_message(event: dg.DagsterEvent) -> str:
    """What the failed step says of its failure: medkg's description, else the message of the innermost medkg error."""
    if event.is_step_failure:
        reported = event.step_failure_data.user_failure_data
        if reported is not None and reported.description:
            return reported.description
        error = event.step_failure_data.error
    elif event.is_step_up_for_retry:
        error = event.step_retry_data.error
    else:
        return event.message or ""
    chain = list(_chain(error))
    told = [link for link in chain if link.cls_name in errors.__all__] or chain
    return told[-1].message.strip() if told else event.message or ""


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    """The error, what caused it and what was being handled when it was raised, outermost first."""
    seen = [error]
    for link in seen:
        if link is not None:
            yield link
            seen.extend((link.cause, link.context))
