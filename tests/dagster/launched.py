"""Runs that Dagster's own launcher starts from a code server, without webserver and daemon: what a sensor can reach.

`dg.execute_job` runs in the test's process, where no launcher can terminate it; a whole deployment starts more slowly.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget

from .conftest import load_projects
from .deployment import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Launched:
    """A run that was launched, and its marks."""

    instance: dg.DagsterInstance
    run_id: str
    marks: Path

    @property
    def run(self) -> dg.DagsterRun:
        """The run as it is now."""
        run = self.instance.get_run_by_id(self.run_id)
        assert run is not None
        return run

    @property
    def status(self) -> str:
        """How far it is."""
        return self.run.status.value

    def events(self, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
        """Its events of a kind."""
        records = self.instance.get_records_for_run(self.run_id, of_type=kind).records
        return [event for record in records if (event := record.event_log_entry.dagster_event) is not None]

    def left(self, mark: str) -> bool:
        """Whether a step left a mark."""
        return (self.marks / mark).exists()

    def wait_for(self, mark: str) -> None:
        """Waits until a step leaves a mark."""
        wait_until(lambda: self.left(mark), f"no step left the mark {mark}; the run is {self.status}")

    def wait_for_end(self) -> None:
        """Waits until the run has ended."""
        wait_until(lambda: self.run.is_finished, "the run has not ended")


class CodeServer:
    """A code server over projects.py, and the launcher of an instance that starts runs from it."""

    def __init__(self, instance: dg.DagsterInstance, process: WorkspaceProcessContext) -> None:
        self.instance = instance
        self.projects: ModuleType = load_projects()
        self._process = process

    def launch(self, job: str, marks: Path, *, config: Mapping[str, Any] | None = None) -> Launched:
        """Starts a run of a job, in a process of its own."""
        marks.mkdir()
        workspace = self._process.create_request_context()
        definition = workspace.get_code_location("tests").get_repository("__repository__").get_full_job(job)
        run = self.instance.create_run_for_job(
            getattr(self.projects, f"{job}_job")(),
            run_config=config,
            tags={self.projects.MARKS_TAG: str(marks)},
            remote_job_origin=definition.get_remote_origin(),
            job_code_origin=definition.get_python_origin(),
        )
        self.instance.launch_run(run.run_id, workspace)
        return Launched(self.instance, run.run_id, marks)


@contextmanager
def code_server(home: Path) -> Iterator[CodeServer]:
    """A code server, with an instance in `home` whose pool `gpu` has two slots."""
    overrides = {"telemetry": {"enabled": False}, "run_retries": {"enabled": True, "max_retries": 2}}
    target = PythonFileTarget(str(HERE / "projects.py"), None, None, "tests")
    with (
        dg.DagsterInstance.local_temp(str(home), overrides=overrides) as instance,
        WorkspaceProcessContext(instance, target) as process,
    ):
        instance.event_log_storage.set_concurrency_slots("gpu", 2)
        yield CodeServer(instance, process)
