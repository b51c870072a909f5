"""Assets that are launched alone: what the runs before them stored has to fit together."""

from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

import medkg
from medkg.chunking import Chunk
from medkg.dagster import GpuServicesResource, medkg_assets
from medkg.dagster.outputs import ChunkSet, EmbeddingSet
from medkg.local import LocalServer

MODEL = "all-MiniLM-L6-v2"


def chunk(text: str) -> Chunk:
    return Chunk(f"{text}:0", text, text, f"{text}.md", 0, text, text, (), None, (), (), (), 4)


def chunk_set(*texts: str) -> ChunkSet:
    return ChunkSet("clinic", [chunk(text) for text in texts], MODEL, 256, [])


class Stored(dg.IOManager):
    """Gives what a test says is stored, and keeps nothing."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Keep nothing."""

    def load_input(self, context: dg.InputContext) -> object:
        """The value of the asset of that name."""
        return self._values[context.asset_key.path[-1]]


def materialize_alone(name: str, server: LocalServer, **stored: Any) -> dg.ExecuteInProcessResult:
    """Materializes one asset; its inputs are what a test says is stored."""

    assets = medkg_assets(documents=(), questions=["What is gout?"], collection="stored")
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


@pytest.mark.parametrize("candidates", [0, 1025])
def test_more_candidates_than_the_reranker_takes_are_refused_when_the_assets_are_made(candidates: int) -> None:
    with pytest.raises(medkg.ConfigError, match="1 to 1024"):
        medkg_assets(documents=(), candidates=candidates)
    assert medkg_assets(documents=(), candidates=1024)
