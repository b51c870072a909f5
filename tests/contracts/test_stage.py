"""The embedding stage over a real gpu-server, and the way to and from the older `context.data`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from medkg.contracts import (
    EmbeddingOptions,
    EmbeddingRequest,
    EmbeddingResult,
    EmbeddingRollout,
    EmbeddingStage,
    FeatureFlags,
    MissingResultError,
    embeddings_of,
    request_from_data,
    result_from_data,
    result_to_data,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

TEXTS = ("acute kidney injury", "community-acquired pneumonia")
DATA: dict[str, Any] = {
    "tenant_id": "clinic",
    "correlation_id": "run-1",
    "chunks": [{"chunk_id": f"c{number}", "body": text, "page": 1} for number, text in enumerate(TEXTS)],
    "metrics": {"chunking": {"chunks": 2}},
}


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[medkg.EmbeddingClient]:
    with medkg.EmbeddingClient(address=server.address, tenant="tests") as made:
        yield made


@pytest.mark.requirement("observability 2.2")
@pytest.mark.requirement("observability 2.4")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "binary"])
def test_the_stage_gives_what_the_client_gives(client: medkg.EmbeddingClient, dtype: Any) -> None:
    request = EmbeddingRequest(
        texts=list(TEXTS),
        ids=["a", "b"],
        tenant="clinic",
        correlation_id=f"of-{dtype}",
        options=EmbeddingOptions(dtype=dtype),
    )
    before = request.model_dump()
    result = EmbeddingStage(client).run(request)
    answer = client.embed(TEXTS, dtype=dtype)
    np.testing.assert_array_equal(result.vectors, answer.vectors)
    np.testing.assert_array_equal(result.as_float32(), answer.as_float32())
    assert (result.ids, result.correlation_id, result.tenant) == (("a", "b"), f"of-{dtype}", "clinic")
    assert (result.model, result.model_digest, result.dimension) == (
        answer.model,
        answer.model_digest,
        answer.dimension,
    )
    assert result.usage is not None
    assert request.model_dump() == before


@pytest.mark.requirement("observability 2.2")
def test_failures_keep_what_is_known_of_them(client: medkg.EmbeddingClient) -> None:
    stage = EmbeddingStage(client)
    with pytest.raises(medkg.EmbeddingProcessingError) as failed:
        stage.run(EmbeddingRequest(texts=["a"], options=EmbeddingOptions(model="no-such-model")))
    assert (failed.value.error_class, failed.value.failure_class) == ("ModelNotFoundError", "INPUT")
    assert isinstance(failed.value.__cause__, medkg.ModelNotFoundError)
    with pytest.raises(medkg.EmbeddingValidationError) as refused:
        stage.run(EmbeddingRequest(texts=["a"], options=EmbeddingOptions(dimensions=100_000)))
    assert refused.value.failure_class == "INPUT"


@pytest.mark.requirement("observability 2.4")
def test_a_server_that_is_gone_is_a_network_failure_with_a_wait_and_a_breaker() -> None:
    with (
        medkg.EmbeddingClient(address="http://127.0.0.1:9", tenant="tests", max_attempts=1) as nobody,
        pytest.raises(medkg.EmbeddingProcessingError) as failed,
    ):
        EmbeddingStage(nobody).run(EmbeddingRequest(texts=["a"], correlation_id="gone"))
    error = failed.value
    assert (error.failure_class, error.correlation_id) == ("NETWORK", "gone")
    assert error.breaker_state in {"closed", "open"}


@pytest.mark.requirement("observability 2.2")
def test_a_gpu_failure_is_no_embedding_error(start_server: Callable[..., LocalServer]) -> None:
    without = start_server(device="cuda", services=("embedding",), reranking_models={}, data_dir=None, wait=False)
    with (
        medkg.EmbeddingClient(address=without.address, tenant="tests") as client,
        pytest.raises(medkg.GpuNotAvailableError) as failed,
    ):
        EmbeddingStage(client).run(EmbeddingRequest(texts=["a"]))
    assert not isinstance(failed.value, medkg.EmbeddingError)
    assert failed.value.failure_class == "GPU"


@pytest.mark.requirement("observability 2.3")
def test_the_older_shape_goes_in_and_comes_out(client: medkg.EmbeddingClient) -> None:
    data = copy.deepcopy(DATA)
    request = request_from_data(data)
    assert (request.texts, request.ids, request.tenant) == (TEXTS, ("c0", "c1"), "clinic")
    result = EmbeddingStage(client).run(request)
    after = result_to_data(result, data)
    assert data == DATA, "what was given stays as it was"
    assert after["metrics"] == {"chunking": {"chunks": 2}, "embedding": after["metrics"]["embedding"]}
    back = result_from_data(after)
    np.testing.assert_array_equal(back.vectors, result.vectors)
    assert (back.ids, back.model, back.model_digest) == (result.ids, result.model, result.model_digest)
    assert back.token_counts is not None
    np.testing.assert_array_equal(back.token_counts, result.token_counts)


@pytest.mark.requirement("observability 2.3")
@pytest.mark.parametrize(
    ("data", "what"),
    [({}, "no 'chunks'"), ({"chunks": [{"chunk_id": "c"}]}, r"chunks\[0\].body is missing")],
)
def test_what_the_older_shape_lacks_is_named(data: dict[str, Any], what: str) -> None:
    with pytest.raises((MissingResultError, medkg.EmbeddingValidationError), match=what):
        request_from_data(data)
    with pytest.raises(MissingResultError, match="no 'embeddings'"):
        result_from_data(data)


@pytest.mark.requirement("observability 2.3")
@pytest.mark.requirement("observability 6.3")
def test_flags_move_a_pipeline_step_by_step(client: medkg.EmbeddingClient) -> None:
    stage = EmbeddingStage(client)

    def older(data: dict[str, Any]) -> dict[str, Any]:
        entry = {"id": "c0", "model": "older", "kind": "dense", "dimension": 2, "vectors": [[0.5, 0.5]]}
        return {**data, "embeddings": [entry]}

    def moved(**flags: bool) -> dict[str, Any]:
        return EmbeddingRollout(stage, FeatureFlags(**flags), older=older).run(DATA)

    first, second, third = moved(use_gpu_services=False), moved(), moved(typed_stage=True)
    assert embeddings_of(first).model == "older"
    assert "embeddings" in second
    assert "embeddings" not in third
    assert isinstance(third["embedding_result"], EmbeddingResult)
    np.testing.assert_array_equal(embeddings_of(second).vectors, embeddings_of(third).vectors)
    with pytest.raises(medkg.ConfigError, match="there is no older stage"):
        EmbeddingRollout(stage, FeatureFlags(use_gpu_services=False))


def test_a_failure_is_not_answered_by_the_older_stage() -> None:
    called: list[object] = []
    with medkg.EmbeddingClient(address="http://127.0.0.1:9", tenant="tests", max_attempts=1) as nobody:
        rollout = EmbeddingRollout(
            EmbeddingStage(nobody), FeatureFlags(), older=lambda data: called.append(data) or data
        )
        with pytest.raises(medkg.EmbeddingProcessingError):
            rollout.run(DATA)
    assert called == []
