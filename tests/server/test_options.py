"""Options of a request, on the raw wire: element types, fewer elements, prompts, and the end that is cut off."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .conftest import TENANT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from medkg.local import LocalServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TEXTS = [f"Patient {i} was given {i * 5} mg of aspirin after the stroke." for i in range(12)]
# Each of these is one token of MiniLM's vocabulary.
WORDS = ["heart", "blood", "dose", "risk", "drug", "pain", "lung", "cell", "gene", "bone", "skin"]
DIMENSION = 384


@pytest.fixture(scope="module")
def stub(wire: Any, prompted_server: LocalServer, open_channel: Any) -> Any:
    return wire.embedding.EmbeddingServiceStub(open_channel(prompted_server))


@pytest.fixture(scope="module")
def request_of(wire: Any) -> Callable[..., Any]:
    def make(texts: list[str] = TEXTS, model: str = "", **options: Any) -> Any:
        options = {
            name: getattr(wire.types, value) if name in {"dtype", "truncation"} else value
            for name, value in options.items()
        }
        return wire.embedding.GenerateEmbeddingsRequest(
            model=model, texts=texts, options=wire.embedding.EmbeddingOptions(**options)
        )

    return make


@pytest.fixture(scope="module")
def embed(stub: Any, request_of: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return stub.GenerateEmbeddings(request_of(*arguments, **options), metadata=[TENANT], timeout=60)

    return call


def floats(answer: Any) -> npt.NDArray[np.float32]:
    return np.frombuffer(answer.embeddings.data, "<f4").reshape(answer.embeddings.shape)


def cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize(("dtype", "mantissa"), [("DATA_TYPE_F16", 11), ("DATA_TYPE_BF16", 8)])
def test_halves_are_the_f32_values_rounded(wire: Any, embed: Any, dtype: str, mantissa: int) -> None:
    exact, answer = floats(embed()), embed(dtype=dtype)
    tensor = answer.embeddings
    assert (tensor.dtype, list(tensor.shape), list(tensor.scales)) == (getattr(wire.types, dtype), [12, DIMENSION], [])
    if dtype == "DATA_TYPE_F16":
        halves = np.frombuffer(tensor.data, "<f2").astype(np.float32)
    else:
        halves = (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    halves = halves.reshape(12, DIMENSION)
    # Rounding moves an element by half a unit of its last place at most; the sums differ in the last places of f32.
    assert np.all(np.abs(halves - exact) <= np.abs(exact) * 2.0**-mantissa + 1e-6)
    assert np.all(cosines(halves, exact) >= 1 - 2.0 ** (-2 * mantissa) - 1e-9)
    assert not np.array_equal(halves, exact)


def test_integers_are_multiples_of_their_rows_scale(wire: Any, embed: Any) -> None:
    exact, tensor = floats(embed()), embed(dtype="DATA_TYPE_INT8").embeddings
    assert (tensor.dtype, list(tensor.shape)) == (wire.types.DATA_TYPE_INT8, [12, DIMENSION])
    integers = np.frombuffer(tensor.data, "i1").reshape(12, DIMENSION)
    scales = np.array(tensor.scales, np.float32)
    np.testing.assert_allclose(scales, np.abs(exact).max(1) / 127, rtol=1e-4)
    assert np.all(np.abs(integers.astype(int)).max(1) == 127)
    back = integers * scales[:, None]
    assert np.all(np.abs(back - exact) <= scales[:, None] / 2 + 1e-6)
    # Each element is off by half a scale at most, so the angle is bounded by the length of that error.
    error = scales / 2 * np.sqrt(DIMENSION) / np.linalg.norm(exact, axis=1)
    assert np.all(cosines(back, exact) >= np.sqrt(1 - error**2) - 1e-6)


@pytest.mark.parametrize("dimensions", [0, 100])
def test_bits_are_the_signs(wire: Any, embed: Any, dimensions: int) -> None:
    width = dimensions or DIMENSION
    exact = floats(embed(dimensions=dimensions))
    tensor = embed(dtype="DATA_TYPE_BINARY", dimensions=dimensions).embeddings
    assert (tensor.dtype, list(tensor.shape)) == (wire.types.DATA_TYPE_BINARY, [12, width])
    packed = np.frombuffer(tensor.data, np.uint8).reshape(12, -(-width // 8))
    clear = np.abs(exact) > 1e-6
    bits = np.unpackbits(packed, axis=1)
    np.testing.assert_array_equal((bits[:, :width] == 1)[clear], (exact > 0)[clear])
    assert not bits[:, width:].any(), "rows are padded with zeros"


def test_fewer_elements_are_the_first_ones_at_unit_length(embed: Any) -> None:
    whole = floats(embed())
    for dimensions in (1, 8, 100, DIMENSION):
        answer = embed(dimensions=dimensions)
        part = floats(answer)
        assert part.shape == (12, dimensions)
        expected = whole[:, :dimensions] / np.linalg.norm(whole[:, :dimensions], axis=1, keepdims=True)
        np.testing.assert_allclose(part, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-5)
        assert answer.usage.tokens == sum(answer.token_counts)


def test_a_prompt_is_put_before_each_text(embed: Any) -> None:
    expected = embed([f"query: {text}" for text in TEXTS])
    plain = floats(embed())
    assert not np.allclose(plain, floats(expected), atol=1e-2)
    by_name = embed(model="named", prompt_name="query")
    in_words = embed(instruction="query: ")
    by_default = embed(model="by-default")
    for answer in (by_name, in_words, by_default):
        np.testing.assert_allclose(floats(answer), floats(expected), atol=1e-5)
        assert list(answer.token_counts) == list(expected.token_counts)
    other = embed(model="by-default", prompt_name="passage")
    np.testing.assert_allclose(floats(other), floats(embed([f"passage: {text}" for text in TEXTS])), atol=1e-5)
    # A model with prompts and no default takes texts as they are, and so does any model asked for no words at all.
    for answer in (embed(model="named"), embed(model="by-default", instruction="")):
        np.testing.assert_allclose(floats(answer), plain, atol=1e-5)


def test_an_instruction_may_be_long_and_has_a_limit(embed: Any, stub: Any, request_of: Any, refused: Any) -> None:
    answer = embed(TEXTS[:1], instruction="x" * 4096)
    assert list(answer.embeddings.shape) == [1, DIMENSION]
    refusal = refused(stub.GenerateEmbeddings, request_of(instruction="é" * 2049))
    assert (refusal.code, refusal.fields) == (INVALID, ["options.instruction"])
    assert "4098 bytes" in refusal.message


@pytest.mark.parametrize("text", ["\0\0", " \n\t", "\u200b\u0301"], ids=["nul", "space", "marks"])
def test_a_prompt_makes_no_text_out_of_nothing(stub: Any, request_of: Any, refused: Any, text: str) -> None:
    refusal = refused(stub.GenerateEmbeddings, request_of([TEXTS[0], text], instruction="query: "))
    assert (refusal.code, refusal.fields) == (INVALID, ["texts[1]"])


def test_either_end_may_be_cut_off(embed: Any, stub: Any, request_of: Any, refused: Any) -> None:
    rng = np.random.default_rng(3)
    words = [str(word) for word in rng.choice(WORDS, 400)]
    texts = [TEXTS[0], " ".join(words), TEXTS[1]]
    limit = 254  # of 256, two are special
    ends = {
        "TRUNCATION_RIGHT": words[:limit],
        "TRUNCATION_LEFT": words[-limit:],
        "TRUNCATION_UNSPECIFIED": words[:limit],
    }
    for truncation, kept in ends.items():
        answer, expected = embed(texts, truncation=truncation), embed([" ".join(kept)])
        assert (list(answer.truncated), answer.token_counts[1]) == ([1], 256)
        assert (list(expected.truncated), expected.token_counts[0]) == ([], 256)
        np.testing.assert_allclose(floats(answer)[1], floats(expected)[0], atol=1e-5)
    left, right = floats(embed(texts, truncation="TRUNCATION_LEFT")), floats(embed(texts))
    assert np.abs(left - right)[1].max() > 1e-2
    np.testing.assert_allclose(left[[0, 2]], right[[0, 2]], atol=1e-5)
    refusal = refused(stub.GenerateEmbeddings, request_of(texts, truncation="TRUNCATION_REFUSE"))
    assert (refusal.code, refusal.fields) == (INVALID, ["texts[1]"])
    # The prompt counts too, and goes first where the first tokens go.
    fits = " ".join(words[:limit])
    refusal = refused(stub.GenerateEmbeddings, request_of([fits], truncation="TRUNCATION_REFUSE", instruction="dose "))
    assert (refusal.code, refusal.fields) == (INVALID, ["texts[0]"])
    assert "prompt" in refusal.message
    answer = embed([fits], truncation="TRUNCATION_LEFT", instruction="dose ")
    assert list(answer.truncated) == [0]
    np.testing.assert_allclose(floats(answer), floats(embed([fits])), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"dimensions": DIMENSION + 1}, "options.dimensions", "384"),
        ({"prompt_name": "Query", "model": "named"}, "options.prompt_name", "known: passage, query"),
        ({"prompt_name": "query"}, "options.prompt_name", "has none"),
        ({"prompt_name": "query", "model": "named", "instruction": ""}, "options.prompt_name", "options.instruction"),
    ],
    ids=["dimensions", "prompt", "no-prompts", "both"],
)
def test_what_cannot_be_is_named(
    stub: Any, request_of: Any, refused: Any, options: dict[str, Any], field: str, said: str
) -> None:
    refusal = refused(stub.GenerateEmbeddings, request_of(**options))
    assert (refusal.code, refusal.reason, refusal.fields) == (INVALID, "INVALID_FIELD", [field])
    assert said in refusal.message


def test_values_that_the_server_does_not_know_are_named(wire: Any, stub: Any, refused: Any) -> None:
    e = wire.embedding
    for field in ("dtype", "truncation"):
        request = e.GenerateEmbeddingsRequest(texts=TEXTS, options=e.EmbeddingOptions(**{field: 77}))
        refusal = refused(stub.GenerateEmbeddings, request)
        assert (refusal.code, refusal.fields) == (INVALID, [f"options.{field}"])
        assert "77" in refusal.message


def test_options_hold_for_a_stream_too(wire: Any, stub: Any, embed: Any, request_of: Any) -> None:
    options: dict[str, Any] = {"dtype": "DATA_TYPE_INT8", "dimensions": 64, "model": "named", "prompt_name": "query"}
    expected = embed(**options).embeddings
    request = wire.embedding.StreamEmbeddingsRequest(batch=request_of(**options))
    for answer in stub.StreamEmbeddings(iter([request, request]), metadata=[TENANT], timeout=60):
        tensor = answer.batch.embeddings
        assert list(tensor.shape) == [12, 64]
        np.testing.assert_allclose(tensor.scales, expected.scales, rtol=1e-4)
        close = np.frombuffer(tensor.data, "i1").astype(int) - np.frombuffer(expected.data, "i1")
        assert np.abs(close).max() <= 1


def test_a_default_prompt_that_there_is_not_fails_the_model(
    wire: Any, start_server: Any, open_channel: Any, refused: Any, minilm_dir: Path, tmp_path: Path
) -> None:
    for file in minilm_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = tmp_path / "config_sentence_transformers.json"
    config.unlink()
    config.write_text(json.dumps({"prompts": {"query": "q: "}, "default_prompt_name": "document"}))
    server = start_server(
        services=("embedding",), embedding_models={"odd": tmp_path}, reranking_models={}, data_dir=None
    )
    stub = wire.embedding.EmbeddingServiceStub(open_channel(server))
    refusal = refused(stub.GenerateEmbeddings, wire.embedding.GenerateEmbeddingsRequest(texts=TEXTS))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_LOAD_FAILED")
    assert "default_prompt_name" in refusal.message
    server.stop()


def test_sparse_calls_are_checked_before_a_model_is_looked_for(wire: Any, stub: Any, refused: Any) -> None:
    request = wire.embedding.GenerateSparseEmbeddingsRequest
    for arguments, field in (
        ({"texts": []}, "texts"),
        ({"texts": [*TEXTS, ""]}, "texts[12]"),
        ({"texts": TEXTS, "truncation": 77}, "truncation"),
    ):
        refusal = refused(stub.GenerateSparseEmbeddings, request(**arguments))
        assert (refusal.code, refusal.fields) == (INVALID, [field])


@pytest.mark.parametrize("model", ["", "all-MiniLM-L6-v2"])
def test_a_dense_model_makes_no_sparse_vectors(wire: Any, stub: Any, refused: Any, model: str) -> None:
    request = wire.embedding.GenerateSparseEmbeddingsRequest(model=model, texts=TEXTS)
    refusal = refused(stub.GenerateSparseEmbeddings, request)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "sparse" in refusal.message


@pytest.mark.parametrize(
    ("options", "field", "said"),
    [
        ({"truncation": "TRUNCATION_LEFT"}, "options.truncation", "TRUNCATION_RIGHT"),
        ({"instruction": "Is it about dosing?"}, "options.instruction", "is not taken"),
        ({"instruction": "x" * 4097}, "options.instruction", "4097 bytes"),
    ],
    ids=["left", "instruction", "long-instruction"],
)
def test_what_a_cross_encoder_does_not_take_is_refused(
    wire: Any, channel: grpc.Channel, refused: Any, options: dict[str, Any], field: str, said: str
) -> None:
    r = wire.reranking
    if "truncation" in options:
        options = {"truncation": getattr(wire.types, options["truncation"])}
    query = r.RerankQuery(query="q", documents=[r.RerankDocument(text="d")])
    request = r.RerankBatchRequest(queries=[query], options=r.RerankOptions(**options))
    refusal = refused(r.RerankingServiceStub(channel).RerankBatch, request)
    assert (refusal.code, refusal.fields) == (INVALID, [field])
    assert said in refusal.message
