"""Reranking puts the passage that answers the question first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import medkg

    from .deployment import Deployment

ROLES_NEEDED = ("reranking",)

PASSAGES = [
    "Dapagliflozin slowed the decline of kidney function in chronic kidney disease, with or without diabetes.",
    "In septic shock, antibiotics should be given within one hour; each hour of delay was associated with more deaths.",
    "Patients with a mechanical heart valve are anticoagulated with warfarin; dabigatran led to more thromboembolism.",
    "Topiramate and propranolol reduced the number of migraine days per month when taken as prevention.",
    "Mepolizumab, an antibody against interleukin-5, reduced exacerbations in severe eosinophilic asthma.",
]
QUESTIONS = {
    0: "Does dapagliflozin slow the decline of kidney function in chronic kidney disease?",
    1: "How soon should antibiotics be given in septic shock?",
    2: "Which anticoagulant is used in patients with a mechanical heart valve?",
    3: "Which drugs prevent migraine?",
    4: "Does mepolizumab reduce exacerbations in severe asthma?",
}


@pytest.fixture(scope="module")
def model(services: medkg.Services, deployment: Deployment) -> medkg.ModelInfo:
    """What the server says of the model under test."""
    models = services.reranking.models()
    wanted = deployment.reranking_model
    found = [one for one in models if (one.name == wanted if wanted else one.is_default)]
    assert len(found) == 1, f"{wanted or 'a default model'} is not among {[one.name for one in models]}"
    return found[0]


@pytest.mark.requirement("isolation 4.2")
def test_the_models_are_listed(model: medkg.ModelInfo) -> None:
    assert len(model.digest) == 64
    assert model.dimension == 0
    assert model.pooling is None
    assert model.max_tokens > 2


@pytest.mark.parametrize("right", QUESTIONS, ids=["kidney", "sepsis", "valve", "migraine", "asthma"])
def test_the_passage_that_answers_comes_first(services: medkg.Services, model: medkg.ModelInfo, right: int) -> None:
    ranked = services.reranking.rerank(QUESTIONS[right], PASSAGES, model=model.name)
    assert (ranked.model, ranked.model_digest) == (model.name, model.digest)
    assert sorted(document.index for document in ranked.documents) == list(range(len(PASSAGES)))
    scores = [document.score for document in ranked.documents]
    assert scores == sorted(scores, reverse=True)
    assert ranked.documents[0].index == right


def test_a_batch_of_questions_ranks_as_one_by_one(services: medkg.Services, model: medkg.ModelInfo) -> None:
    import medkg

    queries = [medkg.RerankQuery(question, PASSAGES) for question in QUESTIONS.values()]
    batch = services.reranking.rerank_batch(queries, model=model.name)
    bar = 1e-3 if model.compute_dtype == "float32" else 0.1
    for question, ranking in zip(QUESTIONS.values(), batch.rankings, strict=True):
        alone = services.reranking.rerank(question, PASSAGES, model=model.name).documents
        relevance = {document.index: document.relevance for document in alone}
        assert {d.index: d.relevance for d in ranking} == pytest.approx(relevance, abs=bar)


def test_the_best_n_are_the_head_of_the_whole_ranking(services: medkg.Services, model: medkg.ModelInfo) -> None:
    whole = services.reranking.rerank(QUESTIONS[0], PASSAGES, model=model.name).documents
    best = services.reranking.rerank(QUESTIONS[0], PASSAGES, model=model.name, top_n=2).documents
    assert [document.index for document in best] == [document.index for document in whole[:2]]


def test_fusion_lets_the_first_search_have_a_say(services: medkg.Services, model: medkg.ModelInfo) -> None:
    first_stage = [0.1, 0.2, 0.3, 0.4, 0.9]

    def ranked(weight: float) -> list[int]:
        found = services.reranking.rerank(
            QUESTIONS[0],
            PASSAGES,
            model=model.name,
            first_stage_scores=first_stage,
            fusion="standardized_sum",
            fusion_weight=weight,
        )
        return [document.index for document in found.documents]

    alone = services.reranking.rerank(QUESTIONS[0], PASSAGES, model=model.name).documents
    assert ranked(1e-6) == [4, 3, 2, 1, 0]
    assert ranked(1e6) == [document.index for document in alone]
