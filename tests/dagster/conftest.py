"""What the Dagster tests share: a real instance, the projects its step processes run, and what came of a run."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

dg = pytest.importorskip("dagster")
from dagster import TableMetadataValue  # noqa: E402 - after the check above
from dagster._core.definitions.reconstruct import ReconstructableJob  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from dagster import DagsterEvent, DagsterInstance

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "examples" / "documents"


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    events: list[DagsterEvent]

    def of(self, kind: str, step: str | None = None) -> list[DagsterEvent]:
        """The events of a kind, of one step if it is named."""
        return [e for e in self.events if e.event_type_value == kind and step in (None, e.step_key)]

    def metadata(self, step: str) -> dict[str, Any]:
        """Metadata of the step's materialization, as plain values; tables as lists of rows."""
        (event,) = self.of("ASSET_MATERIALIZATION", step)
        found = event.step_materialization_data.materialization.metadata
        return {
            name: [record.data for record in value.records] if isinstance(value, TableMetadataValue) else value.value
            for name, value in found.items()
        }

    def failure(self, step: str) -> dict[str, Any]:
        """Metadata and description of the step's failure."""
        (event,) = self.of("STEP_FAILURE", step)
        reported = event.step_failure_data.user_failure_data
        assert reported is not None, event.step_failure_data.error
        return {"description": reported.description, **{k: v.value for k, v in reported.metadata.items()}}

    def reason(self) -> str:
        """Why the run failed."""
        (event,) = self.of("PIPELINE_FAILURE")
        error = event.job_failure_data.error
        assert error is not None
        return error.message


@dataclass
class Lab:
    """A real instance on disk, the projects that run on it, and the folder in which their steps leave marks."""

    instance: DagsterInstance
    projects: ModuleType
    marks: Path

    def run(
        self,
        job: str,
        *,
        services: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        ops: Mapping[str, Any] | None = None,
        execution: Mapping[str, Any] | None = None,
        only: str | None = None,
    ) -> Outcome:
        """Runs a job of the projects; by default each step in its own process."""
        config = {
            "resources": {"gpu_services": {"config": dict(services)}},
            "ops": dict(ops or {}),
            **({} if execution is None else {"execution": {"config": execution}}),
        }
        target = ReconstructableJob.for_file(str(HERE / "projects.py"), job)
        if only is not None:
            target = target.get_subset(asset_selection=frozenset({dg.AssetKey(only)}))
        with dg.execute_job(
            target,
            instance=self.instance,
            run_config=config,
            tags={self.projects.MARKS_TAG: str(self.marks), **(tags or {})},
            raise_on_error=False,
        ) as result:
            run = self.instance.get_run_by_id(result.run_id)
            assert run is not None
            return Outcome(run.run_id, run.status.value, dict(run.tags), list(result.all_events))

    def left(self, mark: str) -> int:
        """How often steps left a mark."""
        path = self.marks / mark
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def load_projects() -> ModuleType:
    """The module with the jobs, imported from its file as the step processes import it."""
    spec = importlib.util.spec_from_file_location("medkg_test_projects", HERE / "projects.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab that the tests of a module share."""
    projects = sys.modules.get("medkg_test_projects") or load_projects()
    folder = tmp_path_factory.mktemp("dagster-home")
    overrides = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(folder), overrides=overrides) as instance:
        yield Lab(instance, projects, folder)


@pytest.fixture
def lab(home: Lab, tmp_path: Path) -> Lab:
    """The module's lab with marks of the test's own."""
    home.marks = tmp_path / "marks"
    home.marks.mkdir()
    return home


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples in three formats, one of them with pages, and two files that are no documents."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("sepsis-first-hours.json", "atrial-fibrillation-anticoagulation.md", "migraine-prophylaxis.html"):
        shutil.copy(SAMPLES / name, folder / name)
    (folder / "not-docling.json").write_text('{"title": "no document"}', encoding="utf-8")
    (folder / "empty.md").write_text("", encoding="utf-8")
    return folder
