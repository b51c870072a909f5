"""Fails a run from outside its executor: for GPU failures under a stock executor, which does not end the run itself.

Three things in this order, as they were found to hold together: the tag `dagster/max_retries=0`, so that the daemon
does not launch the run again; `terminate`, which interrupts the steps, siblings included; then `report_run_failed`,
without which the run would end as CANCELED and no failure sensor would fire. The other way round `terminate` refuses,
because the run has ended, and the siblings work on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import dagster as dg
from dagster._utils.interrupts import capture_interrupts

from medkg.dagster.failures import gpu_run_failure_message, is_gpu_failure

if TYPE_CHECKING:
    from dagster import DagsterInstance

NO_RELAUNCH: Final = {"dagster/max_retries": "0"}
"""Tags of a run that the daemon must not launch again. Re-executions inherit them."""


def fail_run(instance: DagsterInstance, run_id: str, message: str) -> bool:
    """Ends a run as FAILURE with no relaunch; its steps are interrupted.

    Args:
        instance: The instance that the run belongs to.
        run_id: The run.
        message: Why; it becomes the run's failure.

    Returns:
        Whether its steps were interrupted. False for a run that has ended, and for one that no run launcher started
        (`dagster job execute`, `execute_job`): only a launcher can reach its process. Such a run is tagged and ends as
        FAILURE when its other steps are done.
    """
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return False
    instance.add_run_tags(run_id, NO_RELAUNCH)
    if not _has_launcher(run):
        return False
    # Called in a step of this run, `terminate` interrupts the caller too: not before it is told.
    with capture_interrupts():
        if not instance.run_launcher.terminate(run_id):
            return False
        instance.report_run_failed(run, message)
    return True


def _has_launcher(run: dg.DagsterRun) -> bool:
    """Whether a launcher started it. `terminate` would leave any other run CANCELING, with nobody to cancel it."""
    return run.remote_job_origin is not None


@dg.failure_hook(name="gpu_failure_fails_the_run")
def gpu_failure_hook(context: dg.HookContext) -> None:
    """For a job under a stock executor: a step that fails for the GPU ends the run. `gpu_fail_fast` is the better way.

    ```python
    dg.define_asset_job("literature", hooks={gpu_failure_hook})
    ```

    It runs in the process of the failed step. Under the GPU-health sensor runs are failed too, but at its next tick.
    """
    error = context.op_exception
    if error is None or not is_gpu_failure(error):
        return
    description = error.description if isinstance(error, dg.Failure) else str(error)
    message = gpu_run_failure_message(context.step_key, description or "")
    if not fail_run(context.instance, context.run_id, message):
        context.log.warning("%s The other steps go on: no run launcher started this run, so none can stop it.", message)
