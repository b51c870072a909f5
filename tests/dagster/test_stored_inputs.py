"""Assets that are launched alone: what the runs before them stored has to fit together."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

import medkg
from medkg.chunking import Chunk
from medkg.dagster import GpuServicesResource, medkg_assets
from medkg.dagster.outputs import ChunkSet, EmbeddingSet
from medkg.local import LocalServer
from tests.dagster.stored import Stored

MODEL = "all-MiniLM-L6-v2"


def chunk(text: str) -> Chunk:
    return Chunk(f"{text}:0", text, text, f"{text}.md", 0, text, text, (), None, (), (), (), 4)


def chunk_set(*texts: str) -> ChunkSet:
    return ChunkSet("clinic", [chunk(text) for text in texts], MODEL, 256, [])


def materialize_alone(
    name: str, server: LocalServer, *, collection: str = "stored", **stored: Any
) -> dg.ExecuteInProcessResult:
    """Materializes one asset; its inputs are what a test says is stored."""

    assets = medkg_assets(documents=(), questions=["What is gout?"], collection=collection)
    return dg.materialize(
        assets,
        selection=[name],
        resources={
            "gpu_services": GpuServicesResource(address=server.address, tenant="clinic"),
            "io_manager": Stored(**stored),
        },
        raise_on_error=False,
    )


def refused(result: dg.ExecuteInProcessResult) -> str:
    """Why the step was refused."""
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    reported = failed.step_failure_data.user_failure_data
    assert reported is not None, failed.step_failure_data.error
    assert reported.metadata["medkg/failure_class"].value == "INPUT"
    return str(reported.description)


@pytest.fixture(scope="module")
def embeddings(server: LocalServer) -> EmbeddingSet:
    """Made by the asset from the chunks "gout" and "asthma"."""
    result = materialize_alone("embeddings", server, chunks=chunk_set("gout", "asthma"))
    made = result.output_for_node("embeddings")
    assert isinstance(made, EmbeddingSet)
    return made


@pytest.mark.requirement("observability 2.3")
def test_embeddings_of_the_stored_chunks_are_indexed(server: LocalServer, embeddings: EmbeddingSet) -> None:
    result = materialize_alone("vector_index", server, chunks=chunk_set("gout", "asthma"), embeddings=embeddings)
    assert result.output_for_node("vector_index").inserted == 2


@pytest.mark.parametrize("now", [("gout", "asthma", "sepsis"), ("gout",)], ids=["one-more", "one-less"])
def test_embeddings_of_other_chunks_are_refused(
    server: LocalServer, embeddings: EmbeddingSet, now: tuple[str, ...]
) -> None:
    reason = refused(materialize_alone("vector_index", server, chunks=chunk_set(*now), embeddings=embeddings))
    assert "made from other chunks" in reason
    assert "materialize embeddings" in reason


def test_questions_are_not_compared_with_vectors_of_other_weights(
    server: LocalServer, embeddings: EmbeddingSet
) -> None:
    stored = {"chunks": chunk_set("gout", "asthma"), "embeddings": embeddings}
    index = materialize_alone("vector_index", server, **stored).output_for_node("vector_index")
    assert index.model_digest == embeddings.model_digest
    assert materialize_alone("reranked_answers", server, vector_index=index).success
    other = replace(index, model_digest="0" * 64)
    reason = refused(materialize_alone("reranked_answers", server, vector_index=other))
    assert "0" * 64 in reason
    assert embeddings.model_digest in reason


def test_points_of_other_weights_are_counted_and_left_out_of_answers(
    server: LocalServer, embeddings: EmbeddingSet
) -> None:
    def materialize(name: str, **stored: Any) -> Any:
        result = materialize_alone(name, server, collection="two-models", **stored)
        return result.output_for_node(name)

    chunks = chunk_set("gout", "asthma")
    older = replace(embeddings, model_digest="0" * 64)
    assert materialize("vector_index", chunks=chunks, embeddings=older).stale == 0
    # One of the two documents is indexed again, by the weights that the server has now.
    kept = chunk_set("gout")
    again = replace(
        embeddings, chunk_ids=embeddings.chunk_ids[:1], vectors=embeddings.vectors[:1], chunks_digest=kept.digest
    )
    index = materialize("vector_index", chunks=kept, embeddings=again)
    assert (index.points, index.stale, index.replaced) == (2, 1, 1)
    (answer,) = materialize("reranked_answers", vector_index=index)
    assert [passage.document_id for passage in answer.passages] == ["gout"]


def test_assets_are_fresh_for_as_long_as_was_asked_for() -> None:
    assets = medkg_assets(documents=(), freshness=timedelta(days=1))
    policies = {policy for asset in assets for policy in (spec.freshness_policy for spec in asset.specs)}
    assert policies == {dg.FreshnessPolicy.time_window(fail_window=timedelta(days=1))}
    assert {spec.freshness_policy for asset in medkg_assets(documents=()) for spec in asset.specs} == {None}


@pytest.mark.parametrize("candidates", [0, 1025])
def test_more_candidates_than_the_reranker_takes_are_refused_when_the_assets_are_made(candidates: int) -> None:
    with pytest.raises(medkg.ConfigError, match="1 to 1024"):
        medkg_assets(documents=(), candidates=candidates)
    assert medkg_assets(documents=(), candidates=1024)
