"""What calls make do with where the network fails, if they may: servers that are killed, and a GPU that is lost."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg
from medkg.local import LocalServer
from tests.server.played import PlayedGpu

from .load import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Member

DOCUMENTS = ["Aspirin inhibits platelet aggregation.", "The weather was fine.", "Metformin lowers blood glucose."]
SCORES = [0.2, 0.1, 0.9]


@pytest.mark.requirement("isolation 5.4")
@pytest.mark.fault(
    "Fallbacks",
    "the only server of the first cluster is killed, and there is a second cluster",
    "each call is answered by the second cluster and says so; streams are not continued there",
)
def test_a_second_cluster_answers(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    first, second = fleet(2, alike=True)
    embedding = client([first.server.address], fallback=medkg.FallbackConfig(addresses=[second.server.address]))
    whole = embedding.embed(TEXT)
    assert whole.degraded is None
    first.server.kill()
    answers = [embedding.embed(TEXT) for _ in range(20)]
    for answer in answers:
        assert answer.degraded is not None
        assert "fallback" in answer.degraded
        np.testing.assert_array_equal(answer.vectors, whole.vectors)
    breakers = {endpoint.address: endpoint.breaker for endpoint in embedding.endpoints()}
    assert breakers == {first.server.address: "open", second.server.address: "closed"}
    with pytest.raises((medkg.ServiceUnavailableError, medkg.CircuitOpenError)):
        next(iter(embedding.embed_stream(TEXT)))
    seen(f"{len(answers)} of {len(answers)} calls answered with `degraded`; the first cluster's breaker opens")


@pytest.mark.requirement("isolation 5.4")
@pytest.mark.requirement("observability 3.1")
@pytest.mark.fault(
    "Fallbacks",
    "the only server of the first cluster loses its GPU, and every fallback is allowed",
    "GpuLostError at once; the second cluster is not asked",
)
def test_a_lost_gpu_is_no_reason_for_a_fallback(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    tmp_path: Path,
    seen: Callable[[str], None],
) -> None:
    played = PlayedGpu(tmp_path)
    (second,) = fleet(1)
    first = LocalServer(
        played.binary,
        device="cuda",
        services=("embedding",),
        embedding_models={"tiny": tmp_path / "model-0"},
        threads=1,
        log_path=tmp_path / "lost.jsonl",
        arguments=("--dtype", "f32", "--gpu-lost-grace", "120"),
    )
    try:
        fallback = medkg.FallbackConfig(addresses=[second.server.address], stale_cache=True, dense_order=True)
        cache = medkg.CacheConfig(memory_bytes=2**20)
        embedding = client([first.start().address], fallback=fallback, cache=cache)
        assert embedding.embed(TEXT).degraded is None
        played.xid(79)
        errors, deadline = [], time.monotonic() + 60
        while len(errors) < 5:
            assert time.monotonic() < deadline, errors
            try:
                # Texts that are in no cache.
                assert embedding.embed([f"text {time.monotonic_ns()}"]).degraded is None
            except medkg.GpuLostError as error:
                errors.append(error)
        assert {(error.endpoint, error.attempts) for error in errors} == {(first.address, 1)}
    finally:
        first.kill()
    seen("GpuLostError of the first cluster, one attempt; no answer of the second")


@pytest.mark.slow  # what is believed of the models is believed for half a minute
@pytest.mark.fault(
    "Fallbacks",
    "the only server is killed, and embeddings may come from the cache alone",
    "texts that are in the cache are answered and the answer says so; others fail",
)
def test_what_is_cached_is_answered(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    (only,) = fleet(1)
    fallback = medkg.FallbackConfig(stale_cache=True)
    cache = medkg.CacheConfig(memory_bytes=2**20 + 1)
    embedding = client([only.server.address], fallback=fallback, cache=cache)
    whole = embedding.embed(TEXT)
    only.server.kill()
    deadline = time.monotonic() + 90
    while (answer := embedding.embed(TEXT)).degraded is None:
        assert time.monotonic() < deadline, "what is believed is believed for ever"
        time.sleep(0.2)
    assert "from the cache alone" in answer.degraded
    np.testing.assert_array_equal(answer.vectors, whole.vectors)
    assert (answer.usage.cache_hits, answer.model_digest) == (1, only.digest)
    with pytest.raises((medkg.ServiceUnavailableError, medkg.CircuitOpenError)):
        embedding.embed([*TEXT, "a text that is in no cache"])
    seen("the cached text with `degraded`; ServiceUnavailableError or CircuitOpenError for the other")


@pytest.mark.fault(
    "Fallbacks",
    "the only server is killed, and documents may come in the order of their first-stage scores",
    "they do and the answer says so; without scores the call fails",
)
def test_documents_come_in_the_order_of_the_first_stage(
    start_server: Callable[..., LocalServer], seen: Callable[[str], None]
) -> None:
    server = start_server(services=("reranking",), embedding_models={}, data_dir=None)
    fallback = medkg.FallbackConfig(dense_order=True)
    with medkg.RerankingClient(address=server.address, tenant="a", timeout=60, fallback=fallback) as client:
        ranked = client.rerank("What does aspirin do?", DOCUMENTS, first_stage_scores=SCORES, top_n=2)
        assert (ranked.degraded, ranked.documents[0].index) == (None, 0)
        assert math.isfinite(ranked.documents[0].relevance)
        server.kill()
        ranked = client.rerank("What does aspirin do?", DOCUMENTS, first_stage_scores=SCORES, top_n=2)
        assert ranked.degraded is not None
        assert ranked.degraded.startswith("in the order of the first-stage scores: ")
        assert [document.index for document in ranked.documents] == [2, 0]
        assert [document.score for document in ranked.documents] == pytest.approx([0.9, 0.2])
        assert all(math.isnan(document.relevance) for document in ranked.documents)
        assert (ranked.model, ranked.usage.tokens) == ("", 0)
        with pytest.raises((medkg.ServiceUnavailableError, medkg.CircuitOpenError)):
            client.rerank("What does aspirin do?", DOCUMENTS)
        queries = [medkg.RerankQuery("q", DOCUMENTS, SCORES), medkg.RerankQuery("q", DOCUMENTS)]
        with pytest.raises((medkg.ServiceUnavailableError, medkg.CircuitOpenError)):
            client.rerank_batch(queries)
        assert client.rerank_batch(queries[:1]).degraded is not None
    seen("the order of the scores with `degraded`; ServiceUnavailableError or CircuitOpenError without scores")
