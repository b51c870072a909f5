"""To and from the older `context.data`: what it can say is kept, nothing given is changed, mistakes are named."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import medkg
from medkg.contracts import (
    EmbeddingRequest,
    EmbeddingResult,
    MissingResultError,
    embeddings_of,
    request_from_data,
    result_from_data,
    result_to_data,
)

DATA: dict[str, Any] = {
    "tenant_id": "demo",
    "correlation_id": "c-1",
    "chunks": [{"chunk_id": "d#0", "body": "Aspirin"}, {"chunk_id": "d#1", "body": "Heparin", "metadata": {}}],
    "metrics": {"chunking": {"chunks": 2}},
    "config": {"embedding": {"model": "m", "dimensions": 3}},
}
RESULT = EmbeddingResult(
    vectors=np.array([[1, 2, 3], [4, 5, 6.5]], np.float32),
    ids=("d#0", "d#1"),
    dimension=3,
    model="m",
    model_digest="digest",
    correlation_id="c-1",
    tenant="demo",
    token_counts=np.array([3, 4], np.uint32),
    truncated=(1,),
    trace_id="t",
    seconds=0.25,
)


@pytest.mark.requirement("observability 2.3")
def test_chunks_become_a_request() -> None:
    before = copy.deepcopy(DATA)
    request = request_from_data(DATA)
    assert before == DATA
    assert (request.texts, request.ids) == (("Aspirin", "Heparin"), ("d#0", "d#1"))
    assert (request.tenant, request.correlation_id) == ("demo", "c-1")
    assert (request.options.model, request.options.dimensions) == ("m", 3)
    assert request_from_data({"chunks": DATA["chunks"]}).options == EmbeddingRequest(texts=["x"]).options


@pytest.mark.requirement("observability 2.3")
def test_a_result_goes_to_the_older_shape_and_back() -> None:
    before = copy.deepcopy(DATA)
    data = result_to_data(RESULT, DATA)
    assert before == DATA
    assert data["embeddings"][1] == {
        "id": "d#1",
        "model": "m",
        "kind": "dense",
        "dimension": 3,
        "vectors": [[4.0, 5.0, 6.5]],
        "metadata": {},
    }
    assert data["metrics"] == {"chunking": {"chunks": 2}, "embedding": {"vectors": 2, "duration_ms": 250.0}}
    assert data["embedding_summary"]["model_digest"] == "digest"
    back = result_from_data(data)
    arrays = {"vectors", "token_counts"}
    for name in EmbeddingResult.model_fields:
        if name in arrays:
            np.testing.assert_array_equal(getattr(back, name), getattr(RESULT, name))
        else:
            assert getattr(back, name) == getattr(RESULT, name), name
    assert embeddings_of({"embedding_result": RESULT}) is RESULT
    assert embeddings_of(data).ids == RESULT.ids


def test_a_result_without_ids_is_numbered_and_other_types_become_floats() -> None:
    bits = EmbeddingResult(
        vectors=np.array([[0b10100000]], np.uint8),
        dtype="binary",
        dimension=3,
        model="m",
        correlation_id="c",
        seconds=0.0,
    )
    (entry,) = result_to_data(bits)["embeddings"]
    assert (entry["id"], entry["vectors"]) == ("0", [[1.0, -1.0, 1.0]])


@pytest.mark.requirement("observability 2.3")
def test_what_an_older_stage_leaves_out_is_not_known() -> None:
    result = result_from_data(
        {"embeddings": [{"id": "a", "model": "m", "vectors": [[1.0, 2.0]]}], "correlation_id": "c-9"}
    )
    assert (result.dimension, result.correlation_id, result.model_digest) == (2, "c-9", "")
    assert (result.token_counts, result.usage, result.tenant) == (None, None, None)


@pytest.mark.requirement("observability 2.4")
def test_what_is_missing_is_told_with_what_to_do() -> None:
    with pytest.raises(MissingResultError, match=r"has no 'chunks' .*'tenant_id'.*run the chunking stage first"):
        request_from_data({"tenant_id": "demo"})
    with pytest.raises(MissingResultError, match=r"has no 'embeddings' .*run the embedding stage first"):
        embeddings_of({"chunks": []})


GOOD = {"id": "a", "model": "m", "vectors": [[1.0, 2.0]]}


@pytest.mark.requirement("observability 2.4")
@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"chunks": [{"chunk_id": "a"}]}, "chunks[0].body"),
        ({"chunks": [{"chunk_id": "a", "body": "x"}, {"body": "x"}]}, "chunks[1].chunk_id"),
        ({"chunks": [{"chunk_id": "a", "body": ""}]}, "texts[0]"),
        ({"chunks": [{"chunk_id": "a", "body": "x"}], "config": {"embedding": {"models": ["m"]}}}, "models"),
        ({"embeddings": [GOOD, {**GOOD, "vectors": [[1.0]]}]}, "embeddings[1]"),
        ({"embeddings": [GOOD, {**GOOD, "model": "other"}]}, "embeddings[1]"),
        ({"embeddings": [{**GOOD, "kind": "sparse"}]}, "embeddings[0]"),
        ({"embeddings": [{**GOOD, "vectors": []}]}, "embeddings[0].vectors"),
        ({"embeddings": [{**GOOD, "vectors": [["no", "number"]]}]}, "embeddings[0].vectors"),
        ({"embeddings": [{"id": "a", "vectors": [[1.0]]}]}, "embeddings[0].model"),
    ],
)
def test_a_mistake_in_the_older_shape_is_named(data: dict[str, Any], place: str) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        (request_from_data if "chunks" in data else result_from_data)(data)
    assert place in [where for where, _ in caught.value.field_violations]
