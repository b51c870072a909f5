"""A job with a step that waits in a call nobody answers; the clients were used when this file was imported.

Run as a program it executes the job, as the process does that Dagster starts for a run.
"""

import os
import sys
import time
from pathlib import Path

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob

import medkg

ANSWERING, SILENT, MARKS = (os.environ[f"MEDKG_TEST_{name}"] for name in ("ANSWERING", "SILENT", "MARKS"))
USED = medkg.GpuClient(address=ANSWERING, tenant="import")
USED.status()


def note(name: str, what: object) -> None:
    """Leaves a mark for the test."""
    path = Path(MARKS, name)
    path.with_suffix(".new").write_text(str(what), encoding="utf-8")
    path.with_suffix(".new").rename(path)


@dg.op
def blocked() -> None:
    """Waits in Rust, and says when it was let go."""
    note("also-here", USED.status().active_device)
    note("step", os.getpid())
    try:
        medkg.GpuClient(address=SILENT, tenant="step").status(timeout=3600)
    finally:
        note("let-go", time.time())


def _job(start_method: dict[str, object]) -> dg.JobDefinition:
    executor = dg.multiprocess_executor.configured({"start_method": start_method}, name=next(iter(start_method)))

    @dg.job(executor_def=executor, name=next(iter(start_method)))
    def job() -> None:
        blocked()

    return job


def spawn() -> dg.JobDefinition:
    """Steps in fresh interpreters."""
    return _job({"spawn": {}})


def forkserver() -> dg.JobDefinition:
    """Steps forked from a process that has imported medkg."""
    return _job({"forkserver": {"preload_modules": ["medkg.dagster.preload"]}})


if __name__ == "__main__":
    with (
        dg.DagsterInstance.local_temp(MARKS, overrides={"telemetry": {"enabled": False}}) as instance,
        dg.execute_job(
            ReconstructableJob.for_file(__file__, sys.argv[1]), instance=instance, raise_on_error=False
        ) as result,
    ):
        note("status", instance.get_run_by_id(result.run_id).status.value)
