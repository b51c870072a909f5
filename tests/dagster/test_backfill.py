"""A backfill of the auto pipeline, launched as the page does it and run by the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import pytest

import medkg
from bench.literature import write_notes
from medkg.chunking import document_id_of
from medkg.dagster.partitions import DocumentPartitions

from .deployment import Deployment, deployed, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.local import LocalServer

pytestmark = [
    pytest.mark.requirement("isolation 11.1"),
    pytest.mark.requirement("isolation 11.4"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
STAGES = ("documents", "chunks", "embeddings", "vector_index")
BATCHES = DocumentPartitions(3)


def backfill(deployment: Deployment, *partitions: str) -> str:
    """Launches a backfill of all stages over partitions, waits for its end, and returns what came of it."""
    answer = deployment.ask(
        "mutation($p: LaunchBackfillParams!){answer: launchPartitionBackfill(backfillParams: $p)"
        "{__typename ...on LaunchBackfillSuccess{backfillId}}}",
        {
            "p": {
                "assetSelection": [{"path": [stage]} for stage in STAGES],
                "partitionNames": list(partitions),
                "tags": [{"key": "dagster/max_retries", "value": "0"}],
            }
        },
        "LaunchBackfillSuccess",
    )
    query = (
        "query($b: String!){answer: partitionBackfillOrError(backfillId: $b)"
        "{__typename ...on PartitionBackfill{status}}}"
    )

    def status() -> str:
        told = deployment.ask(query, {"b": answer["backfillId"]}, "PartitionBackfill")
        return str(told["status"])

    wait_until(lambda: status().startswith("COMPLETED"), f"the backfill does not end; {deployment.log('daemon')}")
    return status()


def made(deployment: Deployment, stage: str) -> dict[str, int]:
    """How often each partition of a stage was materialized."""
    records = deployment.instance.fetch_materializations(dg.AssetKey(stage), limit=100).records
    partitions = [str(record.partition_key) for record in records]
    return {partition: partitions.count(partition) for partition in partitions}


def test_a_backfill_makes_every_partition_and_one_that_failed_is_made_alone(
    tmp_path: Path, server: LocalServer
) -> None:
    documents = tmp_path / "documents"
    write_notes(documents, 6)
    paths = {path: BATCHES.batch_of(document_id_of(path)) for path in documents.iterdir()}
    partitions = BATCHES.definition.get_partition_keys()
    assert set(paths.values()) == set(partitions), "each batch has documents"
    bad = {path: path.read_text() for path, batch in paths.items() if batch == "1"}
    for path in bad:
        path.write_text("")

    folders = {"MEDKG_TEST_FOLDER": str(tmp_path), "MEDKG_TEST_SERVER": server.address}
    with deployed(tmp_path, project="backfill_project.py", **folders) as deployment:
        assert backfill(deployment, *partitions) == "COMPLETED_FAILED"
        for stage in STAGES:
            assert made(deployment, stage) == {"0": 1, "2": 1}, stage

        for path, text in bad.items():
            path.write_text(text)
        assert backfill(deployment, "1") == "COMPLETED_SUCCESS"
        for stage in STAGES:
            assert made(deployment, stage) == dict.fromkeys(partitions, 1), stage

    with medkg.connect(address=server.address, tenant="clinic") as services:
        query = services.embedding.embed(["gout"]).vectors
        (hits,) = services.vector.search("backfilled", query, k=1000)
    assert {hit.payload["document_id"] for hit in hits if hit.payload} == {document_id_of(path) for path in paths}
