"""The asset checks: each finds what it is there for, and nothing is built on what failed one."""

from dataclasses import replace
from typing import Any

import dagster as dg
import numpy as np
import pytest

from medkg.chunking import Chunk
from medkg.dagster import (
    ChunkSet,
    EmbeddingSet,
    GpuServicesResource,
    IndexSummary,
    SetAside,
    medkg_asset_checks,
    medkg_assets,
)
from medkg.dagster.checks import check_embeddings
from medkg.local import LocalServer
from tests.dagster.stored import Stored


def chunk(document: str) -> Chunk:
    where = (document, document, f"{document}.md", 0, document, document)
    return Chunk(f"{document}:0", *where, (), None, (), (), (), 4)


CHUNKS = ChunkSet("clinic", [chunk(name) for name in ("gout", "asthma", "sepsis")], "m", 256, [])
VECTORS = np.eye(3, 8, dtype=np.float32)
GOOD = EmbeddingSet(
    tenant="clinic",
    chunk_ids=[one.chunk_id for one in CHUNKS.chunks],
    vectors=VECTORS,
    model="m",
    model_digest="d" * 64,
    set_aside=[],
    chunks_digest=CHUNKS.digest,
    content_sha256=["1", "2", "3"],
    dimension=8,
    normalized=True,
)
NAN, LONG = VECTORS.copy(), VECTORS.copy()
NAN[1, 2], LONG[2] = np.nan, 1.01 * VECTORS[2]
TWICE = [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("embeddings", "failed", "wrong"),
    [
        pytest.param(GOOD, set(), None, id="all-is-well"),
        pytest.param(replace(GOOD, dimension=9), {"dimension"}, "gout:0", id="another-dimension"),
        pytest.param(replace(GOOD, vectors=NAN), {"finite"}, "asthma:0", id="nan"),
        pytest.param(replace(GOOD, vectors=LONG), {"norm"}, "sepsis:0", id="not-of-unit-length"),
        pytest.param(replace(GOOD, vectors=LONG, normalized=False), set(), None, id="need-not-be-of-unit-length"),
        pytest.param(replace(GOOD, vectors=0 * VECTORS, normalized=False), {"norm"}, "gout:0", id="zero"),
        pytest.param(
            replace(GOOD, vectors=VECTORS[:2], chunk_ids=GOOD.chunk_ids[:2]), {"count"}, "sepsis:0", id="one-is-missing"
        ),
        pytest.param(
            replace(
                GOOD, vectors=VECTORS[:2], chunk_ids=GOOD.chunk_ids[:2], set_aside=[SetAside("sepsis", "was refused")]
            ),
            set(),
            None,
            id="one-was-set-aside",
        ),
        pytest.param(
            replace(GOOD, vectors=VECTORS[TWICE], chunk_ids=[GOOD.chunk_ids[row] for row in TWICE]),
            {"duplicates"},
            "asthma:0",
            id="one-is-there-twice",
        ),
    ],
)
def test_a_check_of_embeddings_fails_for_its_own_fault_alone_and_names_the_chunk(
    embeddings: EmbeddingSet, failed: set[str], wrong: str | None
) -> None:
    results = {result.check_name: result for result in check_embeddings(embeddings, CHUNKS)}
    assert set(results) == {"dimension", "finite", "norm", "count", "duplicates"}
    assert {name for name, result in results.items() if not result.passed} == failed
    for name in failed:
        assert results[name].metadata["medkg/wrong_chunks"].value[0] == wrong


def run_with(server: LocalServer, selection: dg.AssetSelection, **stored: Any) -> dg.ExecuteInProcessResult:
    assets = medkg_assets(documents=(), collection="checked")
    definitions = dg.Definitions(
        assets=assets,
        asset_checks=medkg_asset_checks(assets),
        jobs=[dg.define_asset_job("checked", selection)],
        resources={
            "gpu_services": GpuServicesResource(address=server.address, tenant="clinic"),
            "io_manager": Stored(**stored),
        },
    )
    return definitions.resolve_job_def("checked").execute_in_process(raise_on_error=False)


INDEX_AFTER_ITS_CHECKS = dg.AssetSelection.assets(
    "vector_index"
).without_checks() | dg.AssetSelection.checks_for_assets("embeddings")


def test_nothing_is_indexed_if_a_check_of_the_embeddings_failed(server: LocalServer) -> None:
    refused = run_with(server, INDEX_AFTER_ITS_CHECKS, chunks=CHUNKS, embeddings=replace(GOOD, vectors=LONG))
    assert not refused.success
    assert {one.check_name for one in refused.get_asset_check_evaluations() if not one.passed} == {"norm"}
    assert refused.get_asset_materialization_events() == []
    made = run_with(server, INDEX_AFTER_ITS_CHECKS, chunks=CHUNKS, embeddings=GOOD)
    assert made.success
    assert len(made.get_asset_materialization_events()) == 1


def test_the_checks_of_the_index_ask_the_server(server: LocalServer) -> None:
    index = run_with(server, INDEX_AFTER_ITS_CHECKS, chunks=CHUNKS, embeddings=GOOD).output_for_node("vector_index")
    assert isinstance(index, IndexSummary)
    checks = dg.AssetSelection.checks_for_assets("vector_index")
    seen = {one.check_name: one for one in run_with(server, checks, vector_index=index).get_asset_check_evaluations()}
    assert seen["recall"].passed
    assert seen["recall"].metadata["medkg/recall"].value == 1.0
    assert seen["recall"].metadata["medkg/queries"].value == 3
    lost = run_with(server, checks, vector_index=replace(index, points=index.points + 1))
    assert {one.check_name: one.passed for one in lost.get_asset_check_evaluations()} == {
        "points": False,
        "recall": True,
    }
