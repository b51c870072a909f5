"""Embeddings are what a pipeline relies on: stable, of unit norm, the same in any batch, near where meaning is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import medkg

    from .deployment import Deployment

ROLES_NEEDED = ("embedding",)

TEXTS = [
    "Aspirin.",
    "Dapagliflozin slows the loss of kidney function in adults with chronic kidney disease.",
    "µg/kg per day; naïve Ärzte, 医学, 0.5 × 10⁹/L",
    "Measure lactate, take blood cultures before antibiotics, and give the first dose within one hour. " * 6,
    "HbA1c fell by 0.9 percentage points (95% CI 0.7 to 1.1; p < 0.001).",
    "Eine Patientin mit Vorhofflimmern und mechanischer Herzklappe erhält Warfarin.",
]

NEAR_AND_FAR = [
    (
        "The patient had a heart attack.",
        "He was admitted with acute myocardial infarction.",
        "The tablets are stored at room temperature.",
    ),
    (
        "Metformin lowers blood glucose in type 2 diabetes.",
        "Patients with diabetes received a drug that reduced their blood sugar.",
        "The fracture of the wrist was treated with a cast.",
    ),
    (
        "Antibiotics were given for bacterial pneumonia.",
        "The lung infection was treated with amoxicillin.",
        "The trial was registered before the first participant was enrolled.",
    ),
    (
        "She takes a triptan when a migraine begins.",
        "Treatment of acute attacks of severe headache.",
        "Serum creatinine was measured every three months.",
    ),
]


@pytest.fixture(scope="module")
def model(services: medkg.Services, deployment: Deployment) -> medkg.ModelInfo:
    """What the server says of the model under test."""
    models = services.embedding.models()
    wanted = deployment.embedding_model
    found = [one for one in models if (one.name == wanted if wanted else one.is_default)]
    assert len(found) == 1, f"{wanted or 'a default model'} is not among {[one.name for one in models]}"
    return found[0]


@pytest.fixture(scope="module")
def batch(services: medkg.Services, model: medkg.ModelInfo) -> medkg.EmbeddingResult:
    """All texts in one call."""
    return services.embedding.embed(TEXTS, model=model.name)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    left, right = left.astype(np.float64), right.astype(np.float64)
    return np.sum(left * right, axis=-1) / (np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1))


@pytest.mark.requirement("isolation 3.2")
def test_the_models_are_listed(services: medkg.Services, model: medkg.ModelInfo) -> None:
    models = services.embedding.models()
    assert [one.name for one in models] == sorted(one.name for one in models)
    assert sum(one.is_default for one in models) == 1
    assert len(model.digest) == 64
    assert set(model.digest) <= set("0123456789abcdef")
    assert model.dimension > 0
    assert model.max_tokens > 2
    assert model.pooling in ("mean", "cls")
    assert model.compute_dtype in ("float32", "float16", "bfloat16")
    assert model.device


def test_the_vectors_have_the_models_shape(batch: medkg.EmbeddingResult, model: medkg.ModelInfo) -> None:
    assert batch.vectors.shape == (len(TEXTS), model.dimension)
    assert batch.vectors.dtype == np.float32
    assert np.isfinite(batch.vectors).all()
    assert (batch.model, batch.model_digest) == (model.name, model.digest)
    if model.normalized:
        assert np.abs(np.linalg.norm(batch.vectors, axis=1) - 1).max() < 1e-3


def test_float16_is_the_same_vector_rounded(
    services: medkg.Services, batch: medkg.EmbeddingResult, model: medkg.ModelInfo
) -> None:
    half = services.embedding.embed(TEXTS, model=model.name, dtype="float16").vectors
    assert half.dtype == np.float16
    assert cosines(half, batch.vectors).min() >= 0.99999


def test_the_same_texts_give_the_same_vectors(
    services: medkg.Services, batch: medkg.EmbeddingResult, model: medkg.ModelInfo
) -> None:
    again = services.embedding.embed(TEXTS, model=model.name)
    assert cosines(again.vectors, batch.vectors).min() >= 0.999999
    np.testing.assert_array_equal(again.token_counts, batch.token_counts)


def test_a_text_alone_gives_the_vector_it_has_in_a_batch(
    services: medkg.Services, batch: medkg.EmbeddingResult, model: medkg.ModelInfo
) -> None:
    alone = np.concatenate([services.embedding.embed([text], model=model.name).vectors for text in TEXTS])
    # Half-precision kernels add up in an order that depends on the shape of the batch.
    bar = 0.99999 if model.compute_dtype == "float32" else 0.999
    assert cosines(alone, batch.vectors).min() >= bar


@pytest.mark.parametrize(
    ("anchor", "near", "far"), NEAR_AND_FAR, ids=["infarction", "diabetes", "pneumonia", "migraine"]
)
def test_what_means_the_same_is_nearer(
    services: medkg.Services, model: medkg.ModelInfo, anchor: str, near: str, far: str
) -> None:
    vectors = services.embedding.embed([anchor, near, far], model=model.name).vectors
    to_near, to_far = cosines(vectors[0], vectors[1]), cosines(vectors[0], vectors[2])
    assert to_near > to_far + 0.1


def test_the_tokenizer_counts_as_the_server_does(
    services: medkg.Services, batch: medkg.EmbeddingResult, model: medkg.ModelInfo
) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'medkg[chunking]'")
    file = services.embedding.tokenizer(model.name)
    assert (file.model, file.model_digest) == (model.name, model.digest)
    tokenizer = tokenizers.Tokenizer.from_str(file.json.decode())
    counted = [min(len(tokenizer.encode(text).ids), model.max_tokens) for text in TEXTS]
    assert counted == batch.token_counts.tolist()
    assert batch.usage.tokens == sum(counted)


def test_a_long_text_is_cut_where_that_is_wanted_and_refused_where_not(
    services: medkg.Services, model: medkg.ModelInfo
) -> None:
    import medkg

    texts = ["Short.", "word " * (2 * model.max_tokens)]
    cut = services.embedding.embed(texts, model=model.name)
    assert cut.truncated == [1]
    assert cut.token_counts[1] == model.max_tokens
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        services.embedding.embed(texts, model=model.name, truncation="refuse")
    assert [field for field, _ in caught.value.field_violations] == ["texts[1]"]


def test_many_texts_come_back_in_order(services: medkg.Services, model: medkg.ModelInfo) -> None:
    texts = [f"Patient {number} received {number} mg." for number in range(300)]
    seen: list[tuple[int, int]] = []
    many = services.embedding.embed(texts, model=model.name, progress=lambda done, total: seen.append((done, total)))
    assert many.usage.calls > 1
    assert seen[-1] == (300, 300)
    picked = [0, 127, 128, 299]
    alone = services.embedding.embed([texts[index] for index in picked], model=model.name)
    bar = 0.9999 if model.compute_dtype == "float32" else 0.999
    assert cosines(alone.vectors, many.vectors[picked]).min() >= bar
