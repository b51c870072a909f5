"""The component, as Dagster's own command line sees it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing.utils import create_defs_folder_sandbox
from dagster_dg_cli.cli import cli

import medkg
from medkg.chunking import Strategy
from medkg.dagster import MedkgPipelineComponent
from medkg.local import LocalServer

pytestmark = [
    pytest.mark.requirement("isolation 11.3"),
    # Dagster 1.13 reads YAML with a function that pydantic has deprecated, and warns of a class of its own.
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),
]

NAME = "medkg.dagster.MedkgPipelineComponent"
PROJECT = """
[project]
name = "clinic"
version = "0.1.0"
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "clinic"
"""
DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as `dg` wants it, with no component yet."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "clinic" / "defs").mkdir(parents=True)
    (folder / "clinic" / "__init__.py").touch()
    (folder / "clinic" / "defs" / "__init__.py").touch()
    (folder / "clinic" / "definitions.py").write_text(DEFINITIONS)
    return folder


@pytest.fixture
def dg_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command of `dg` in the project, in this process; gives what it prints. It succeeds."""
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("DAGSTER_IS_DEV_CLI", "1")  # as the command does, which would leave it behind
    home = {"DAGSTER_HOME": str(project), "DAGSTER_DISABLE_TELEMETRY": "yes"}

    def run(*arguments: str, **environment: str) -> str:
        done = CliRunner().invoke(cli, arguments, env={**home, **environment})
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_dg_finds_scaffolds_checks_and_lists_the_component(project: Path, dg_command: Callable[..., str]) -> None:
    found = json.loads(dg_command("list", "components", "--json"))
    assert NAME in {component["key"] for component in found["items"]}

    dg_command("scaffold", "defs", NAME, "literature")
    written = project / "clinic" / "defs" / "literature" / "defs.yaml"
    said = yaml.safe_load(written.read_text())
    assert said["type"] == NAME
    assert (written.parent / "documents").is_dir()
    assert 'tenant = "dev"' in (written.parent / "config" / "dev.toml").read_text()

    listed = json.loads(dg_command("list", "defs", "--json", MEDKG_ADDRESS="http://127.0.0.1:9"))
    assert {"documents", "chunks", "embeddings", "vector_index", "reranked_answers"} <= {
        asset["asset_key"] for asset in listed["assets"]
    }
    assert [job["name"] for job in listed["jobs"]] == ["literature"]


ATTRIBUTES: dict[str, Any] = {
    "env": "staging",
    "config": "config",
    "documents": ["papers/{tenant}"],
    "storage": "/data/tables",
    "job_name": "nightly",
    "questions": ["Which dose?"],
    "collection": "trials",
    "embedding_model": "minilm",
    "reranking_model": "reranker",
    "strategy": "hierarchical",
    "candidates": 20,
    "top_n": 3,
    "fusion": "none",
    "docling_serve": "http://127.0.0.1:5001",
    "manual": True,
    "batches": 4,
    "tenants": ["clinic-1", "clinic-2"],
    "fresh_hours": 12.0,
    "group_name": "papers",
    "key_prefix": ["trials"],
    "pool": "gpus",
}


def test_every_attribute_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKG_ADDRESS", "http://127.0.0.1:9")
    assert set(ATTRIBUTES) == set(MedkgPipelineComponent.model_fields)
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            MedkgPipelineComponent, defs_yaml_contents={"type": NAME, "attributes": ATTRIBUTES}
        )
        (path / "config" / "staging.toml").write_text("timeout = 7\n")
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, definitions):
            assert definitions.resources["gpu_services"].timeout == 7
            (embeddings,) = (
                asset for asset in definitions.assets if asset.key == dg.AssetKey(["trials", "embeddings"])
            )
            assert embeddings.op.pool == "gpus"
            assert embeddings.group_names_by_key[embeddings.key] == "papers"
            assert "nightly" in {job.name for job in definitions.jobs}


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_documents_are_chunked_as_the_yaml_says(strategy: str, server: LocalServer) -> None:
    attributes = {"env": "dev", "config": "config", "documents": ["documents"], "strategy": strategy}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            MedkgPipelineComponent, defs_yaml_contents={"type": NAME, "attributes": attributes}
        )
        (path / "config" / "dev.toml").write_text(f'address = "{server.address}"\ntenant = "dev"\n')
        (path / "documents" / "note.md").write_text("# Fever\n\nMeasure lactate.\n")
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, definitions):
            done = definitions.resolve_job_def("literature").execute_in_process(
                asset_selection=[dg.AssetKey("documents"), dg.AssetKey("chunks")]
            )
    (chunks,) = done.asset_materializations_for_node("chunks")
    assert chunks.metadata["medkg/strategy"].value == strategy
    assert chunks.metadata["dagster/row_count"].value == 1


def test_production_refuses_in_yaml_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKG_ADDRESS", "http://127.0.0.1:9")
    attributes = {"env": "prod", "documents": ["papers"]}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            MedkgPipelineComponent, defs_yaml_contents={"type": NAME, "attributes": attributes}
        )
        with (
            pytest.raises(ComponentTreeException) as caught,
            sandbox.load_component_and_build_defs(defs_path=path),
        ):
            pass
    assert isinstance(caught.value.__cause__, medkg.ConfigError)
    assert "address: is plaintext" in str(caught.value.__cause__)
