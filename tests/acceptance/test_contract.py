"""What a caller can rely on beside the answers: errors that name the cause, ids that come back, no call lost."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deployment import Deployment

ROLES_NEEDED = ("embedding",)
CALLS = 64


@pytest.fixture
def embed(services: medkg.Services, deployment: Deployment) -> Callable[..., medkg.EmbeddingResult]:
    """Embeds with the model under test."""

    def call(texts: list[str], **options: object) -> medkg.EmbeddingResult:
        return services.embedding.embed(texts, **{"model": deployment.embedding_model, **options})

    return call


def fields(error: medkg.MedkgError) -> list[str]:
    return [field for field, _ in error.field_violations]


def test_an_unknown_model_is_named(embed: Callable[..., medkg.EmbeddingResult], services: medkg.Services) -> None:
    with pytest.raises(medkg.ModelNotFoundError) as caught:
        embed(["x"], model="no-such-model")
    error = caught.value
    assert (error.code, error.reason, error.retryable) == ("NOT_FOUND", "MODEL_NOT_FOUND", False)
    assert "no-such-model" in str(error)
    assert any(model.name in str(error) for model in services.embedding.models())


def test_an_empty_text_is_named_with_its_index(embed: Callable[..., medkg.EmbeddingResult]) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        embed(["fine", "", "fine"])
    assert fields(caught.value) == ["texts[1]"]
    assert caught.value.code == "INVALID_ARGUMENT"
    assert len(embed(["The server lives on."]).vectors) == 1


def test_no_texts_at_all_is_an_error(embed: Callable[..., medkg.EmbeddingResult]) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        embed([])
    assert fields(caught.value) == ["texts"]


def test_a_call_without_a_tenant_sends_nothing(deployment: Deployment) -> None:
    from dataclasses import replace

    with (
        medkg.connect(replace(deployment.config, tenant=None)) as nobody,
        pytest.raises((medkg.ValidationError, medkg.ConfigError)) as caught,
    ):
        nobody.embedding.embed(["x"])
    assert "tenant" in str(caught.value)
    assert caught.value.attempts == 0


def test_a_deadline_is_kept(embed: Callable[..., medkg.EmbeddingResult]) -> None:
    with pytest.raises(medkg.ServiceTimeoutError) as caught:
        embed(["word " * 200] * 1000, timeout=0.001)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_a_vector_of_the_wrong_dimension_is_refused_and_nothing_is_written(
    services: medkg.Services, deployment: Deployment, new_collection: Callable[..., str]
) -> None:
    if "vector" not in deployment.roles:
        pytest.skip("the deployment serves no vectors")
    name = new_collection(4)
    with pytest.raises(medkg.VectorValidationError) as caught:
        services.vector.upsert(name, ["a"], np.ones((1, 3), dtype=np.float32))
    assert fields(caught.value) == ["vectors.shape"]
    with pytest.raises(medkg.VectorValidationError) as caught:
        services.vector.upsert(name, ["a", "b"], np.array([[1, 0, 0, 0], [0, np.nan, 0, 0]], dtype=np.float32))
    assert fields(caught.value) == ["vectors[1]"]
    assert services.vector.statistics(name).points == 0


def test_ids_and_trace_come_back_with_answers_and_errors(embed: Callable[..., medkg.EmbeddingResult]) -> None:
    trace, request_id = uuid.uuid4().hex, f"acceptance-{uuid.uuid4().hex}"
    ids = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "request_id": request_id}
    answer = embed(["x"], **ids)
    assert (answer.trace_id, answer.request_id) == (trace, request_id)
    with pytest.raises(medkg.MedkgError) as caught:
        embed(["x"], model="no-such-model", **ids)
    error = caught.value
    assert (error.trace_id, error.request_id) == (trace, request_id)
    assert error.service
    assert error.method
    assert error.endpoint
    fresh = embed(["x"])
    assert fresh.request_id not in ("", request_id)
    assert fresh.trace_id not in ("", trace)


def test_a_burst_of_calls_loses_none(embed: Callable[..., medkg.EmbeddingResult]) -> None:
    texts = [f"Participant {number} was given {number * 5} mg on day {number + 1}." for number in range(CALLS)]
    expected = embed(texts).vectors
    with ThreadPoolExecutor(CALLS) as pool:
        answers = list(pool.map(lambda text: embed([text]), texts))
    assert len({answer.request_id for answer in answers}) == CALLS
    vectors = np.concatenate([answer.vectors for answer in answers])
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    assert (np.sum(vectors * expected, axis=1) / lengths).min() >= 0.999
    # Each answer belongs to its own question, not to a neighbour's.
    assert (vectors @ expected.T).argmax(axis=1).tolist() == list(range(CALLS))


def test_the_awaitable_clients_give_the_same(
    embed: Callable[..., medkg.EmbeddingResult], deployment: Deployment, services: medkg.Services
) -> None:
    texts = [f"Visit {number}" for number in range(8)]

    async def all_of_them() -> tuple[list[medkg.EmbeddingResult], list[medkg.ModelInfo]]:
        async with medkg.connect_async(deployment.config) as connected:
            calls = [connected.embedding.embed([text], model=deployment.embedding_model) for text in texts]
            return list(await asyncio.gather(*calls)), await connected.embedding.models()

    answers, models = asyncio.run(all_of_them())
    assert models == services.embedding.models()
    vectors = np.concatenate([answer.vectors for answer in answers])
    np.testing.assert_allclose(vectors, embed(texts).vectors, atol=2e-2)
