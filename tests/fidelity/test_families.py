"""Every model family, with every pooling and head, equals transformers and sentence-transformers.

The checkpoints are tiny and random, written by reference_families.py in the reference interpreter, which computes one
input at a time. gpu-server serves all of them at once and packs what arrives together.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

from .conftest import cosines, in_reference_interpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

PROMPT = "Represent the medical claim for search: "
INSTRUCTION = "Given a claim, find trials that bear on it"
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FAMILIES = ("bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "qwen3")
STORED = ("bare", "legacy", "extra", "f16", "sharded")
EMBEDDING = (
    *(f"{family}-{pooling}" for family in FAMILIES for pooling in POOLINGS),
    *(f"unpooled-prompt-{pooling}" for pooling in POOLINGS),
    *(f"stored-{way}" for way in STORED),
    *(f"{age}-{family}" for age in ("old", "new") for family in ("modernbert", "qwen3")),
    *(f"plain-{family}" for family in ("bert", "modernbert", "qwen3")),
    *(f"{family}-heads-of-8" for family in ("bert", "modernbert")),
    *("bert-silu", "bert-tanh", "two-poolings", "dense", "prompted", "matryoshka", "lower-cased", "old-flags"),
)
SPARSE = ("splade-bert", "splade-roberta", "splade-mpnet", "splade-modernbert", "splade-sum")
RERANKING = (
    *(f"rerank-{family}" for family in ("bert", "roberta", "xlm-roberta", "mpnet", "modernbert", "qwen3")),
    *("rerank-modernbert-mean", "rerank-qwen3-untied", "rerank-qwen3-label"),
)


class Families:
    """The checkpoints, the inputs, and what the reference makes of them."""

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self.folder = folder
        self.texts: list[str] = request["texts"]
        self.pairs: list[list[str]] = request["pairs"]
        with np.load(folder / "answer.npz") as arrays:
            self.answers = {name: arrays[name] for name in arrays.files}

    def models(self, *names: str) -> dict[str, Path]:
        return {name: self.folder / name for name in names}


@pytest.fixture(scope="module")
def families(passages: list[str], tmp_path_factory: pytest.TempPathFactory) -> Families:
    folder = tmp_path_factory.mktemp("families")
    words = " ".join(passages[:40]).split()
    # The last one is too long for every model, whatever the tokenizers have learnt from these passages.
    lengths = (1, 1, 2, 3, 4, 5, 6, 8, 8, 10, 13, 16, 20, 24, 27, 30, 34, 40, 55, 300)
    texts = [" ".join(words[at : at + length]) for at, length in enumerate(lengths)]
    texts += [
        "β2-agonist μg/kg ≥ 3",
        "naïve Ärzte",
        "医学 文献",
        "one <pad> and [PAD] in a text",
        "UPPER Case",
        "a\nb\t c  ",
    ]
    queries = ["Does metformin lower mortality?", "stroke " * 30, "x"]
    documents = ["y", *(" ".join(words[at : at + length]) for at, length in ((3, 6), (9, 15), (20, 40), (50, 200)))]
    request = {
        "texts": [*texts, *passages[:6]],
        "pairs": [[query, document] for query in queries for document in documents],
        "prompt": PROMPT,
        "instruction": INSTRUCTION,
    }
    (folder / "request.json").write_text(json.dumps(request))
    in_reference_interpreter("reference_families.py", folder)
    return Families(folder, request)


@pytest.fixture(scope="module")
def family_server(families: Families, start_server: Callable[..., LocalServer]) -> LocalServer:
    server = start_server(
        services=("embedding", "reranking"),
        embedding_models=families.models(*EMBEDDING, *SPARSE),
        reranking_models=families.models(*RERANKING),
    )
    failed = [event for event in server.events() if event.get("message") == "model not served"]
    assert not failed, failed
    return server


@pytest.fixture(scope="module")
def family_services(family_server: LocalServer) -> Iterator[medkg.Services]:
    with medkg.connect(address=family_server.address, tenant="fidelity", timeout=600) as connected:
        yield connected


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert cosines(found, wanted).min() >= 0.99999
    # An absolute bound too: a vector of the right direction may have the wrong length.
    assert np.abs(found - wanted).max() <= 1e-4 * max(1.0, float(np.abs(wanted).max()))


def test_sparse_and_dense_models_are_not_taken_for_each_other(
    families: Families, family_services: medkg.Services
) -> None:
    client = family_services.embedding
    with pytest.raises(medkg.EmbeddingValidationError, match="makes sparse vectors") as caught:
        client.embed(families.texts, model="splade-bert")
    assert caught.value.field_violations[0][0] == "model"
    with pytest.raises(medkg.ModelNotFoundError, match="splade-bert, splade-roberta"):
        client.embed_sparse(families.texts, model="bert-mean")
    assert client.embed_sparse(families.texts).model == SPARSE[0], "without a name the first sparse one"


def test_only_the_largest_terms_are_kept(families: Families, family_services: medkg.Services) -> None:
    whole = family_services.embedding.embed_sparse(families.texts)
    largest = family_services.embedding.embed_sparse(families.texts, max_terms=5)
    assert (np.diff(largest.indptr) == np.minimum(np.diff(whole.indptr), 5)).all()
    for index in range(len(families.texts)):
        (ids, weights), (_, all_weights) = largest.row(index), whole.row(index)
        assert (np.diff(ids) > 0).all()
        np.testing.assert_allclose(np.sort(weights), np.sort(all_weights)[-5:], atol=1e-4)


def test_random_checkpoints_tell_texts_apart(families: Families) -> None:
    """Guards the others: a reference whose answers hardly differ would be equalled by anything."""
    for name in EMBEDDING:
        vectors = families.answers[name].astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.median(vectors @ vectors.T) < 0.999, name
    for name in RERANKING:
        assert families.answers[name].std() > 5e-3, name


@pytest.mark.parametrize("name", EMBEDDING)
def test_dense_vectors(families: Families, family_services: medkg.Services, name: str) -> None:
    answer = family_services.embedding.embed(families.texts, model=name)
    check(answer.vectors, families.answers[name])
    assert int(answer.token_counts.max()) == {"lower-cased": 20}.get(name, 256 if "qwen3" in name else 48)


@pytest.mark.parametrize("name", [f"{family}-mean" for family in FAMILIES])
def test_one_by_one_in_a_batch_and_shuffled(families: Families, family_services: medkg.Services, name: str) -> None:
    texts, wanted = families.texts, families.answers[name]
    alone = [family_services.embedding.embed([text], model=name).vectors for text in texts]
    check(np.concatenate(alone), wanted)
    order = list(range(len(texts)))
    random.Random(7).shuffle(order)
    check(family_services.embedding.embed([texts[at] for at in order], model=name).vectors, wanted[order])
    together = family_services.embedding.embed(texts, model=name).vectors
    assert cosines(together, np.concatenate(alone)).min() >= 0.99999


@pytest.mark.parametrize("name", [f"{family}-mean" for family in FAMILIES])
def test_the_last_tokens_are_kept(families: Families, family_services: medkg.Services, name: str) -> None:
    found = family_services.embedding.embed(families.texts, model=name, truncation="left").vectors
    check(found, families.answers[f"{name}:ends"])
    assert cosines(families.answers[f"{name}:ends"], families.answers[name]).min() < 0.999


@pytest.mark.parametrize("name", ["prompted", "unpooled-prompt-weightedmean"])
def test_named_prompts_and_instructions(families: Families, family_services: medkg.Services, name: str) -> None:
    embed, texts = family_services.embedding.embed, families.texts
    check(embed(texts, model=name, prompt_name="document").vectors, families.answers[f"{name}:named"])
    check(embed(texts, model=name, instruction=INSTRUCTION).vectors, families.answers[f"{name}:instructed"])
    assert cosines(families.answers[f"{name}:named"], families.answers[name]).min() < 0.999


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_vectors(families: Families, family_services: medkg.Services, name: str) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        answer = family_services.embedding.embed_sparse(texts, model=name)
        rows = np.zeros((len(texts), answer.dimension), np.float32)
        for index, row in enumerate(rows):
            places, weights = answer.row(index)
            row[places] = weights
        return rows

    wanted = families.answers[name]
    for found in (embed(families.texts), np.concatenate([embed([text]) for text in families.texts])):
        check(found, wanted)
        # The same words, but where a logit is next to 0.
        assert not ((found > 0) != (wanted > 0))[np.abs(found - wanted) > 1e-4].any()
    assert 0.01 < (wanted > 0).mean() < 0.999


@pytest.mark.parametrize("name", RERANKING)
def test_scores(families: Families, family_services: medkg.Services, name: str) -> None:
    wanted = families.answers[name]
    queries = sorted({query for query, _ in families.pairs})
    alone = [
        family_services.reranking.rerank(query, [document], model=name).documents[0].relevance
        for query, document in families.pairs
    ]
    assert np.abs(np.asarray(alone) - wanted).max() < 1e-4
    for query in queries:
        at = [index for index, pair in enumerate(families.pairs) if pair[0] == query]
        ranked = family_services.reranking.rerank(query, [families.pairs[index][1] for index in at], model=name)
        found = np.empty(len(at))
        for document in ranked.documents:
            found[document.index] = document.relevance
        assert np.abs(found - wanted[at]).max() < 1e-4


@pytest.mark.parametrize("name", [name for name in RERANKING if "qwen3" in name])
def test_scores_under_an_instruction(families: Families, family_services: medkg.Services, name: str) -> None:
    rerank = family_services.reranking.rerank
    found = [
        rerank(query, [document], model=name, instruction=INSTRUCTION).documents[0].relevance
        for query, document in families.pairs
    ]
    wanted = families.answers[f"{name}:instructed"]
    assert np.abs(np.asarray(found) - wanted).max() < 1e-4
    assert np.abs(families.answers[name] - wanted).max() > 1e-2


def test_a_cross_encoder_refuses_an_instruction(family_services: medkg.Services) -> None:
    with pytest.raises(medkg.RerankingValidationError, match="instruction"):
        family_services.reranking.rerank("x", ["y"], model="rerank-bert", instruction=INSTRUCTION)


def test_models_tell_what_they_are(families: Families, family_services: medkg.Services) -> None:
    models = {model.name: model for model in family_services.embedding.models()}
    poolings = {
        "cls": "cls",
        "max": "max",
        "mean": "mean",
        "mean_sqrt_len_tokens": "mean_sqrt_length",
        "weightedmean": "weighted_mean",
        "lasttoken": "last_token",
    }
    for family in FAMILIES:
        for name, pooling in poolings.items():
            model = models[f"{family}-{name}"]
            assert (model.architecture, model.pooling, model.normalized) == (family, pooling, True)
            assert (model.kind, model.dimension) == ("dense", 64)
    assert (models["dense"].dimension, models["two-poolings"].dimension, models["matryoshka"].dimension) == (
        16,
        128,
        24,
    )
    assert not models["matryoshka"].normalized
    assert not models["plain-bert"].normalized
    sparse = models["splade-bert"]
    assert (sparse.kind, sparse.pooling) == ("sparse", "splade")
    assert sparse.dimension == families.answers["splade-bert"].shape[1]
    assert models["prompted"].prompts == {"document": "", "query": PROMPT}
    assert models["prompted"].default_prompt == "query"
    # Of several files: their digests, one per line, in the order of their names.
    shards = sorted((families.folder / "stored-sharded").glob("*.safetensors"))
    lines = "".join(hashlib.sha256(shard.read_bytes()).hexdigest() + "\n" for shard in shards)
    assert models["stored-sharded"].digest == hashlib.sha256(lines.encode()).hexdigest()


def test_bf16(families: Families, start_server: Callable[..., LocalServer]) -> None:
    """Every layer takes bf16, and what comes out is near; how near is bf16's business."""
    dense = [f"{family}-{pooling}" for family in FAMILIES for pooling in ("mean", "cls")]
    server = start_server(
        services=("embedding", "reranking"),
        embedding_models=families.models(*dense, *SPARSE, "dense"),
        reranking_models=families.models(*RERANKING),
        arguments=["--dtype", "bf16"],
    )
    with medkg.connect(address=server.address, tenant="fidelity", timeout=600) as services:
        for name in (*dense, "dense"):
            found = services.embedding.embed(families.texts, model=name).vectors
            assert cosines(found, families.answers[name]).min() >= 0.995, name
        for name in RERANKING:
            query, document = families.pairs[2]
            found = services.reranking.rerank(query, [document], model=name).documents[0].relevance
            wanted = families.answers[name]
            assert abs(found - wanted[2]) <= 0.1 * max(1.0, float(np.abs(wanted).max())), name
    server.stop()
