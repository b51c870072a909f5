"""RerankingClient against a real gpu-server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import medkg
from medkg import RerankQuery

if TYPE_CHECKING:
    from medkg.local import LocalServer

QUERY = "Does aspirin lower the risk of stroke?"
DOCUMENTS = [
    "The weather in Lisbon was mild in spring.",
    "Low-dose aspirin reduced ischaemic stroke in a randomised trial of 39,876 women.",
    "Zebrafish embryos develop outside the mother.",
]


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.RerankingClient:
    return medkg.RerankingClient(address=server.address, tenant="reranking")


@pytest.mark.requirement("isolation 5.2")
@pytest.mark.requirement("isolation 6.4")
def test_the_best_document_comes_first(client: medkg.RerankingClient) -> None:
    result = client.rerank(QUERY, DOCUMENTS)
    assert result.documents[0].index == 1
    assert sorted(document.index for document in result.documents) == [0, 1, 2]
    scores = [document.score for document in result.documents]
    assert scores == sorted(scores, reverse=True)
    assert result.usage.calls == 1
    assert result.model in [model.name for model in client.models()]


def test_only_the_best(client: medkg.RerankingClient) -> None:
    assert [document.index for document in client.rerank(QUERY, DOCUMENTS, top_n=1).documents] == [1]
    with pytest.raises(medkg.RerankingValidationError, match="top_n"):
        client.rerank(QUERY, DOCUMENTS, top_n=0)


def test_a_first_stage_score_can_decide(client: medkg.RerankingClient) -> None:
    fused = client.rerank(
        QUERY, DOCUMENTS, first_stage_scores=[9.0, 0.0, 0.0], fusion="standardized_sum", fusion_weight=1e-3
    )
    assert fused.documents[0].index == 0
    assert fused.documents[0].score != fused.documents[0].relevance


@pytest.mark.requirement("isolation 4.2")
def test_many_queries_keep_their_order(client: medkg.RerankingClient) -> None:
    queries = [RerankQuery(QUERY, DOCUMENTS if i % 2 else DOCUMENTS[::-1]) for i in range(70)]
    result = client.rerank_batch(queries, top_n=1)
    assert result.usage.calls == 2, "a request takes 64 queries"
    assert [ranking[0].index for ranking in result.rankings] == [1] * 70
    assert len(result.rankings) == 70


def test_wrong_arguments_are_named(client: medkg.RerankingClient) -> None:
    with pytest.raises(medkg.RerankingValidationError) as caught:
        client.rerank(QUERY, [*DOCUMENTS, ""])
    assert caught.value.field_violations[0][0].startswith("queries[0].documents[3]")
    with pytest.raises(medkg.RerankingValidationError, match=r"first_stage_scores.*2 scores for 3 documents"):
        client.rerank(QUERY, DOCUMENTS, first_stage_scores=[1.0, 2.0])
    with pytest.raises(medkg.RerankingValidationError, match=r"documents\[1\]"):
        client.rerank(QUERY, ["a", 3])  # type: ignore[list-item]
    with pytest.raises(medkg.RerankingValidationError, match="fusion"):
        client.rerank(QUERY, DOCUMENTS, fusion="magic")  # type: ignore[arg-type]
    with pytest.raises(medkg.RerankingValidationError, match=r"options\.instruction.*medkg-reranker-minilm"):
        client.rerank(QUERY, DOCUMENTS, instruction="Is it about dosing?")
    with pytest.raises(medkg.RerankingValidationError, match=r"options\.truncation"):
        client.rerank(QUERY, DOCUMENTS, truncation="left")  # type: ignore[arg-type]
    with pytest.raises(medkg.RerankingValidationError, match=r"queries\[1\]"):
        client.rerank_batch([RerankQuery(QUERY, DOCUMENTS), "no query"])  # type: ignore[list-item]
    with pytest.raises(medkg.RerankingValidationError, match="queries"):
        client.rerank_batch([])


def test_a_bad_document_in_a_later_request_is_named_by_the_callers_index(client: medkg.RerankingClient) -> None:
    queries = [RerankQuery(QUERY, ["a"]) for _ in range(70)]
    queries[66] = RerankQuery(QUERY, ["a", ""])
    with pytest.raises(medkg.RerankingValidationError) as caught:
        client.rerank_batch(queries)
    assert caught.value.field_violations[0][0].startswith("queries[66].documents[1]")
