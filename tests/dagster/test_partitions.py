"""Batches and tenants: who reads which documents, what a backfill makes, and how one document is worked on alone."""

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

import medkg
from bench.literature import write_notes
from medkg.dagster import GpuServicesResource, medkg_assets, medkg_definitions
from medkg.dagster.partitions import DocumentPartitions
from medkg.local import LocalServer


def test_a_document_stays_in_its_batch_whatever_comes_and_batches_are_about_equal() -> None:
    batches = DocumentPartitions(20)
    ids = [f"note-{number}" for number in range(10_000)]
    of = {document: batches.batch_of(document) for document in ids}
    sizes = [list(of.values()).count(key) for key in batches.definition.get_partition_keys()]
    assert sum(sizes) == 10_000
    assert max(sizes) < 1.2 * min(sizes)
    assert [DocumentPartitions(20).batch_of(document) for document in ids] == list(of.values())


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"batches": 0}, "batches: 0 is out of range"),
        ({"tenants": []}, "tenants: names nobody"),
        ({"tenants": ["a", "b"]}, "documents: all tenants would read the same files"),
    ],
)
def test_partitions_that_cannot_be_are_refused_when_the_assets_are_made(choices: dict[str, Any], reason: str) -> None:
    with pytest.raises(medkg.ConfigError, match=reason):
        medkg_assets(documents="documents", **choices)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of two tenants."""
    folder = tmp_path_factory.mktemp("tenants")
    write_notes(folder / "documents" / "clinic-a", 6)
    write_notes(folder / "documents" / "clinic-b", 3, seed=1)
    return folder


@pytest.fixture(scope="module")
def definitions(folder: Path, server: LocalServer) -> dg.Definitions:
    return medkg_definitions(
        documents=str(folder / "documents" / "{tenant}"),
        services=GpuServicesResource(address=server.address),
        storage=str(folder / "tables"),
        collection="by-tenant",
        batches=2,
        tenants=["clinic-a", "clinic-b"],
    )


@pytest.fixture(scope="module")
def instance(folder: Path) -> Any:
    home = folder / "home"
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@pytest.mark.requirement("isolation 11.1")
def test_each_tenant_and_batch_is_a_run_of_its_own_and_answers_come_from_all_batches_of_one(
    definitions: dg.Definitions, instance: dg.DagsterInstance, folder: Path, server: LocalServer
) -> None:
    job = definitions.resolve_job_def("literature")
    assert job.partitions_def is not None
    for key in job.partitions_def.get_partition_keys():
        assert job.execute_in_process(instance=instance, partition_key=key).success
    files = sorted(path.relative_to(folder / "tables" / "documents") for path in folder.glob("tables/documents/*/*"))
    assert [str(path) for path in files] == [
        f"{b}/{tenant}.parquet" for b in (0, 1) for tenant in ("clinic-a", "clinic-b")
    ]
    found = {str(path): pq.read_table(folder / "tables" / "documents" / path) for path in files}
    assert sum(found[f"{batch}/clinic-a.parquet"].num_rows for batch in (0, 1)) == 6
    assert sum(found[f"{batch}/clinic-b.parquet"].num_rows for batch in (0, 1)) == 3
    for tenant, count in (("clinic-a", 6), ("clinic-b", 3)):
        with medkg.connect(address=server.address, tenant=tenant) as services:
            hits = services.vector.search("by-tenant", services.embedding.embed(["gout"]).vectors, k=100)[0]
            assert len({hit.payload["document_id"] for hit in hits if hit.payload}) == count
    answered = definitions.resolve_job_def("literature_answers").execute_in_process(
        instance=instance,
        tags={"medkg/tenant_id": "clinic-b"},
        run_config={"ops": {"reranked_answers": {"config": {"questions": ["What is given in gout?"]}}}},
    )
    (answer,) = answered.output_for_node("reranked_answers")
    seeds = {path.name for path in (folder / "documents" / "clinic-b").iterdir()}
    assert {passage.source for passage in answer.passages} <= seeds


def test_a_document_is_worked_on_alone_by_its_name_and_the_others_stay(
    folder: Path, server: LocalServer, instance: dg.DagsterInstance
) -> None:
    notes = folder / "alone"
    write_notes(notes, 3)
    bad = notes / "note-00001.md"
    good = bad.read_text(encoding="utf-8")
    bad.write_text("", encoding="utf-8")
    definitions = medkg_definitions(
        documents=notes,
        services=GpuServicesResource(address=server.address, tenant="clinic-c"),
        storage=str(folder / "alone-tables"),
        collection="alone",
    )
    job = definitions.resolve_job_def("literature")
    stages = ["documents", "chunks", "embeddings", "vector_index"]
    first = job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(stage) for stage in stages])
    aside = first.asset_materializations_for_node("documents")[0].metadata["medkg/set_aside"]
    assert [Path(str(record.data["document"])).name for record in aside.records] == [bad.name]
    bad.write_text(good, encoding="utf-8")
    again = job.execute_in_process(
        instance=instance,
        asset_selection=[dg.AssetKey(stage) for stage in stages],
        run_config={"ops": {"documents": {"config": {"only": [bad.name]}}}},
    )
    assert again.asset_materializations_for_node("documents")[0].metadata["dagster/row_count"].value == 1
    index = again.output_for_node("vector_index")
    assert (index.inserted, index.replaced) == (2, 0)
    assert index.points == first.output_for_node("vector_index").points + 2
