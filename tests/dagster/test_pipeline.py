"""The pipeline end to end: a real instance, the multiprocess executor, a real gpu-server."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest

from medkg.dagster import tables

if TYPE_CHECKING:
    from medkg.dagster import Answer
    from medkg.local import LocalServer

    from .conftest import Lab, Outcome

TENANT = "clinic-of-the-pipeline"
SEPSIS = "How soon must antibiotics be given in septic shock?"
VALVE = "Which anticoagulant is used in atrial fibrillation with a mechanical heart valve?"
ASSETS = ("documents", "chunks", "embeddings", "vector_index", "reranked_answers")


def ops(documents: Path, *questions: str) -> dict[str, object]:
    return {
        "documents": {"config": {"paths": [str(documents)]}},
        "reranked_answers": {"config": {"questions": list(questions)}},
    }


@pytest.fixture(scope="module")
def outcome(home: Lab, server: LocalServer, documents: Path) -> Outcome:
    """One run of everything; the tenant comes from the run's tag, over the resource's own."""
    outcome = home.run(
        "pipeline",
        services={"address": server.address, "tenant": "nobody"},
        tags={"medkg/tenant_id": TENANT},
        ops=ops(documents, SEPSIS, VALVE),
    )
    assert outcome.status == "SUCCESS"
    return outcome


@pytest.fixture(scope="module")
def answers(home: Lab, outcome: Outcome) -> list[Answer]:
    """What the run stored."""
    assert outcome.status == "SUCCESS"
    stored = Path(home.instance.storage_directory(), "medkg", "reranked_answers.parquet")
    found: list[Answer] = tables.from_table(pq.read_table(stored))
    return found


@pytest.mark.requirement("isolation 11.1")
def test_every_asset_materializes_in_a_process_of_its_own(outcome: Outcome) -> None:
    assert outcome.status == "SUCCESS"
    assert [event.step_key for event in outcome.of("ASSET_MATERIALIZATION")] == list(ASSETS)
    assert len(outcome.of("STEP_WORKER_STARTED")) == len(ASSETS)


def test_answers_have_the_right_document_on_top_with_section_and_page(answers: list[Answer]) -> None:
    sepsis, valve = answers
    assert sepsis.question == SEPSIS
    assert sepsis.passages[0].source == "sepsis-first-hours.json"
    assert sepsis.passages[0].page in {1, 2}
    assert "Sepsis" in sepsis.passages[0].headings[0]
    assert valve.passages[0].source == "atrial-fibrillation-anticoagulation.md"
    assert valve.passages[0].headings[-1] == "Choosing the drug"
    assert valve.passages[0].page is None
    for answer in answers:
        assert [passage.rank for passage in answer.passages] == list(range(1, len(answer.passages) + 1))
        assert len({passage.chunk_id for passage in answer.passages}) == len(answer.passages)


def test_a_bad_document_is_set_aside_and_listed(outcome: Outcome) -> None:
    documents, chunks = outcome.metadata("documents"), outcome.metadata("chunks")
    assert (documents["dagster/row_count"], documents["medkg/documents_set_aside"]) == (4, 1)
    (unreadable,), (no_document,) = documents["medkg/set_aside"], chunks["medkg/set_aside"]
    assert unreadable["document"].endswith("/empty.md")
    assert "empty" in unreadable["reason"]
    assert no_document["document"].startswith("not-docling-")
    assert "not a DoclingDocument" in no_document["reason"]


def test_metadata_tells_counts_timings_model_device_and_shows_tables_and_plots(outcome: Outcome) -> None:
    chunks, embeddings, index, answered = (outcome.metadata(name) for name in ASSETS[1:])
    for metadata in (chunks, embeddings, index, answered):
        assert metadata["medkg/tenant"] == TENANT
        assert metadata["medkg/seconds"] >= 0
        assert metadata["medkg/model"]
    assert chunks["medkg/longest"] <= chunks["medkg/limit"] == 256
    assert chunks["medkg/quality"]["chunks"] == chunks["dagster/row_count"]
    assert chunks["medkg/quality"]["failed"] == chunks["medkg/documents_set_aside"] == 1
    assert chunks["medkg/quality"]["problems"] == {}
    assert chunks["medkg/quality"]["tokens_per_second"] > 0
    assert embeddings["dagster/row_count"] == chunks["dagster/row_count"] == index["dagster/row_count"]
    assert embeddings["medkg/dimension"] == 384
    assert embeddings["medkg/device"] == answered["medkg/device"] == index["medkg/device"] == "cpu"
    assert embeddings["medkg/tokens"] == chunks["medkg/tokens"]
    assert embeddings["medkg/texts_embedded"] == embeddings["dagster/row_count"]
    assert embeddings["medkg/compute_seconds"] > 0
    assert embeddings["medkg/preview"][0]["norm"] == pytest.approx(1.0, abs=1e-3)
    assert index["medkg/inserted"] == index["dagster/row_count"]
    assert {row["document"] for row in index["medkg/preview"]} >= {"Oral anticoagulation in atrial fibrillation"}
    assert VALVE in answered["medkg/answers"]
    for picture in (chunks["medkg/token_counts"], embeddings["medkg/document_similarity"]):
        encoded = picture.partition("base64,")[2].removesuffix(")")
        assert ET.fromstring(base64.b64decode(encoded)).tag.endswith("svg")  # noqa: S314 -- our own picture


@pytest.mark.requirement("isolation 11.4")
def test_the_servers_log_carries_the_runs_trace_and_tenant(outcome: Outcome, server: LocalServer) -> None:
    from hashlib import sha256

    trace_id = sha256(outcome.run_id.encode()).digest()[:16].hex()
    calls = [line for line in server.events() if line.get("trace_id") == trace_id]
    methods = {str(line.get("method")).rpartition("/")[2] for line in calls}
    assert methods >= {"GenerateEmbeddings", "UpsertVectors", "SearchVectors", "RerankBatch"}
    assert {line.get("tenant") for line in calls} == {TENANT}
    assert outcome.metadata("embeddings")["medkg/trace_id"] == trace_id


def test_another_tenant_finds_no_collection(outcome: Outcome, server: LocalServer) -> None:
    import medkg

    assert outcome.status == "SUCCESS"
    with medkg.connect(address=server.address) as services:
        assert [c.name for c in services.vector.collections(tenant=TENANT)] == ["test"]
        assert services.vector.collections(tenant="nobody") == []
        with pytest.raises(medkg.CollectionNotFoundError):
            services.vector.statistics("test", tenant="nobody")


def test_a_step_refuses_what_was_stored_for_another_tenant(home: Lab, outcome: Outcome, server: LocalServer) -> None:
    assert outcome.status == "SUCCESS"
    refused = home.run(
        "pipeline",
        services={"address": server.address},
        tags={"medkg/tenant_id": "clinic-b"},
        only="vector_index",
    )
    assert refused.status == "FAILURE"
    assert f"are of tenant {TENANT!r}" in refused.failure("vector_index")["description"]


@pytest.fixture
def spoiled(documents: Path, tmp_path: Path) -> Path:
    """The same documents, of which one has gone bad."""
    folder = tmp_path / "spoiled"
    shutil.copytree(documents, folder)
    (folder / "sepsis-first-hours.json").write_text("{ broken", encoding="utf-8")
    return folder


def test_a_second_run_replaces_and_loses_nothing_even_if_a_document_has_gone_bad(
    home: Lab, outcome: Outcome, answers: list[Answer], server: LocalServer, spoiled: Path
) -> None:
    assert answers
    second = home.run(
        "pipeline",
        services={"address": server.address},
        tags={"medkg/tenant_id": TENANT},
        ops=ops(spoiled, SEPSIS),
    )
    assert second.status == "SUCCESS"
    assert second.metadata("chunks")["medkg/documents_set_aside"] == 2
    embeddings = second.metadata("embeddings")
    assert (embeddings["medkg/texts_embedded"], embeddings["medkg/calls"]) == (0, 0)
    assert embeddings["medkg/chunks_reused"] == embeddings["dagster/row_count"] > 0
    index = second.metadata("vector_index")
    assert index["medkg/inserted"] == 0
    assert 0 < index["medkg/replaced"] < index["dagster/row_count"]
    assert index["dagster/row_count"] == outcome.metadata("vector_index")["dagster/row_count"]
    assert "Sepsis in the first hours" in second.metadata("reranked_answers")["medkg/answers"]
