"""EmbeddingClient against a real gpu-server."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from medkg.local import LocalServer

TEXTS = [f"Patient {i} was given {i * 5} mg of aspirin." for i in range(50)]


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.EmbeddingClient:
    return medkg.EmbeddingClient(address=server.address, tenant="embedding", max_batch_texts=16)


@pytest.mark.requirement("isolation 3.2")
@pytest.mark.requirement("isolation 5.2")
@pytest.mark.requirement("isolation 6.4")
def test_one_vector_per_text_in_order(client: medkg.EmbeddingClient) -> None:
    result = client.embed(TEXTS)
    assert (result.vectors.shape, result.vectors.dtype) == ((50, 384), np.float32)
    assert (result.token_counts.shape, result.token_counts.dtype) == ((50,), np.uint32)
    for index in (0, 15, 16, 49):
        alone = client.embed([TEXTS[index]])
        np.testing.assert_allclose(result.vectors[index], alone.vectors[0], atol=1e-5)
        assert result.token_counts[index] == alone.token_counts[0]
    assert (result.usage.calls, result.usage.retries, result.usage.device) == (4, 0, "cpu")
    assert result.usage.tokens == result.token_counts.sum()
    assert result.usage.compute_time > 0
    [model] = [model for model in client.models() if model.is_default]
    assert (result.model, result.model_digest) == (model.name, model.digest)
    assert (len(result.trace_id), len(result.request_id)) == (32, 32)


def test_arrays_own_the_memory_that_rust_wrote(client: medkg.EmbeddingClient) -> None:
    vectors = client.embed(TEXTS).vectors
    assert vectors.flags.c_contiguous
    assert vectors.flags.aligned
    assert vectors.flags.writeable
    owner = vectors
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert owner.nbytes == vectors.nbytes
    assert type(owner.base).__name__ == "PySliceContainer", "the elements were copied"
    kept, address = vectors.copy(), owner.__array_interface__["data"][0]
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is not None, "the array keeps its memory alive"
    assert vectors.__array_interface__["data"][0] == address
    np.testing.assert_array_equal(vectors, kept)


def test_progress_is_told_in_the_thread_that_waits(client: medkg.EmbeddingClient) -> None:
    told: list[tuple[int, int]] = []
    client.embed(TEXTS, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert len(told) == 4
    assert told[-1] == (50, 50)


def test_what_progress_raises_ends_the_call(client: medkg.EmbeddingClient) -> None:
    def progress(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.embed(TEXTS, progress=progress)
    assert client.embed(TEXTS[:1]).vectors.shape == (1, 384)


def test_long_texts_are_shortened_or_refused(client: medkg.EmbeddingClient) -> None:
    texts = [*TEXTS[:20], "aspirin " * 2000, *TEXTS[20:]]
    result = client.embed(texts)
    assert result.truncated == [20]
    assert result.token_counts[20] == 256
    with pytest.raises(medkg.EmbeddingValidationError, match=r"texts\[20\]") as caught:
        client.embed(texts, truncation="refuse")
    assert caught.value.field_violations[0][0] == "texts[20]"


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        ("one string", "texts"),
        (b"bytes", "texts"),
        (None, "texts"),
        (["a", None], "texts[1]"),
        (["a", b"b"], "texts[1]"),
        (["a", "\ud800"], "texts[1]"),
        ([*TEXTS[:40], ""], "texts[40]"),
        (["x" * (10 << 20)], "texts[0]"),
    ],
    ids=["none", "str", "bytes", "None", "no str", "bytes inside", "surrogate", "empty text", "10 MB"],
)
def test_a_bad_text_is_named(client: medkg.EmbeddingClient, texts: object, field: str) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        client.embed(texts)  # type: ignore[arg-type]
    assert caught.value.field_violations[0][0] == field
    assert field in str(caught.value)


def test_odd_text_is_text(client: medkg.EmbeddingClient) -> None:
    odd = ["a\0b", "👩\u200d⚕️👨\u200d👩\u200d👧\u200d👦", "\u202eright to left", "é" * 100, " a ", "\na"]
    assert np.isfinite(client.embed(odd).vectors).all()


def test_iterables_are_texts_too(client: medkg.EmbeddingClient) -> None:
    expected = client.embed(TEXTS[:3]).vectors
    for texts in (tuple(TEXTS[:3]), iter(TEXTS[:3]), np.array(TEXTS[:3], dtype=object)):
        np.testing.assert_allclose(client.embed(texts).vectors, expected, atol=1e-6)


def test_wrong_choices_are_named(client: medkg.EmbeddingClient) -> None:
    with pytest.raises(medkg.EmbeddingValidationError, match="dtype"):
        client.embed(TEXTS[:1], dtype="float64")  # type: ignore[arg-type]
    with pytest.raises(medkg.EmbeddingValidationError, match="truncation"):
        client.embed(TEXTS[:1], truncation="middle")  # type: ignore[arg-type]


def test_an_unknown_model_says_which_are_known(client: medkg.EmbeddingClient) -> None:
    with pytest.raises(medkg.ModelNotFoundError, match="MiniLM") as caught:
        client.embed(TEXTS[:1], model="no-such-model")
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_the_tokenizer_counts_as_the_server_does(client: medkg.EmbeddingClient) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    file = client.tokenizer()
    tokenizer = tokenizers.Tokenizer.from_str(file.json.decode())
    counts = [len(tokenizer.encode(text).ids) for text in TEXTS]
    assert client.embed(TEXTS).token_counts.tolist() == counts
    assert file.model_digest == client.models()[0].digest
