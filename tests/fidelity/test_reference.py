"""gpu-server's vectors and scores equal sentence-transformers' and transformers'."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

from .conftest import cosines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def wanted(
    reference: Callable[..., dict[str, np.ndarray]], minilm_dir: Path, texts_of_every_length: list[str]
) -> np.ndarray:
    return reference(embedding_model=minilm_dir, texts=texts_of_every_length)["vectors"]


@pytest.mark.requirement("isolation 8.1")
@pytest.mark.requirement("observability 3.4")
class TestEmbeddings:
    def test_one_by_one(self, services: medkg.Services, texts_of_every_length: list[str], wanted: np.ndarray) -> None:
        found = np.concatenate([services.embedding.embed([text]).vectors for text in texts_of_every_length])
        assert cosines(found, wanted).min() >= 0.99999
        assert np.abs(found - wanted).max() < 1e-4

    def test_in_one_batch(self, services: medkg.Services, texts_of_every_length: list[str], wanted: np.ndarray) -> None:
        answer = services.embedding.embed(texts_of_every_length)
        assert answer.vectors.dtype == np.float32
        assert cosines(answer.vectors, wanted).min() >= 0.99999
        assert int(answer.token_counts.max()) == 256
        assert len(answer.truncated) >= 2

    def test_shuffled(self, services: medkg.Services, texts_of_every_length: list[str], wanted: np.ndarray) -> None:
        order = list(range(len(texts_of_every_length)))
        random.Random(11).shuffle(order)
        found = services.embedding.embed([texts_of_every_length[at] for at in order]).vectors
        assert cosines(found, wanted[order]).min() >= 0.99999

    def test_half_precision_on_the_wire(
        self, services: medkg.Services, texts_of_every_length: list[str], wanted: np.ndarray
    ) -> None:
        found = services.embedding.embed(texts_of_every_length, dtype="float16").vectors
        assert found.dtype == np.float16
        assert cosines(found, wanted).min() >= 0.9999

    def test_bf16(
        self,
        start_server: Callable[..., LocalServer],
        texts_of_every_length: list[str],
        wanted: np.ndarray,
        minilm_dir: Path,
    ) -> None:
        server = start_server(
            services=("embedding",),
            embedding_models={"m": minilm_dir},
            reranking_models={},
            arguments=["--dtype", "bf16"],
        )
        with medkg.connect(address=server.address, tenant="fidelity", timeout=600) as services:
            assert services.embedding.models()[0].compute_dtype == "bfloat16"
            found = services.embedding.embed(texts_of_every_length).vectors
        server.stop()
        assert cosines(found, wanted).min() >= 0.999


@pytest.fixture(scope="module")
def pairs(passages: list[str]) -> list[list[str]]:
    queries = ["Does metformin lower mortality?", "anticoagulation", "risk of stroke in atrial fibrillation " * 12]
    picked = random.Random(2).sample(passages, min(12, len(passages)))
    picked += ["x", " ".join(passages[:30])]
    return [[query, passage] for query in queries for passage in picked]


@pytest.fixture(scope="module")
def wanted_scores(
    reference: Callable[..., dict[str, np.ndarray]], reranker_dir: Path, pairs: list[list[str]]
) -> np.ndarray:
    return reference(reranking_model=reranker_dir, pairs=pairs)["scores"]


@pytest.mark.requirement("isolation 8.1")
class TestReranking:
    def test_scores_one_by_one_and_in_a_batch(
        self, services: medkg.Services, pairs: list[list[str]], wanted_scores: np.ndarray
    ) -> None:
        alone = [services.reranking.rerank(query, [document]).documents[0].relevance for query, document in pairs]
        assert np.abs(np.asarray(alone) - wanted_scores).max() < 1e-4
        queries = sorted({query for query, _ in pairs})
        for query in queries:
            at = [index for index, pair in enumerate(pairs) if pair[0] == query]
            ranked = services.reranking.rerank(query, [pairs[index][1] for index in at]).documents
            found = np.empty(len(at))
            for document in ranked:
                found[document.index] = document.relevance
            assert np.abs(found - wanted_scores[at]).max() < 1e-4
            assert [document.score for document in ranked] == sorted((d.score for d in ranked), reverse=True)

    def test_the_named_fusion_adds_standardised_scores(self, services: medkg.Services, passages: list[str]) -> None:
        documents = passages[:6]
        first = [0.9, 0.1, 0.5, 0.4, 0.8, 0.2]
        plain = services.reranking.rerank("heart failure", documents).documents
        relevance = np.empty(6)
        for document in plain:
            relevance[document.index] = document.relevance
        z = lambda values: (values - values.mean()) / max(values.std(), 1e-6)  # noqa: E731
        wanted = z(np.asarray(first)) + 2.0 * z(relevance)
        fused = services.reranking.rerank(
            "heart failure", documents, first_stage_scores=first, fusion="standardized_sum", fusion_weight=2.0
        ).documents
        assert [document.index for document in fused] == list(np.argsort(-wanted))
        assert max(abs(document.score - wanted[document.index]) for document in fused) < 1e-3
