"""Element types, prompts, fewer elements and the end that is cut off, through the wheel and a real gpu-server."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    import numpy.typing as npt

    from medkg.local import LocalServer

TEXTS = [f"Patient {i} was given {i * 5} mg of aspirin." for i in range(50)]
DIMENSION = 384


@pytest.fixture(scope="module")
def config(prompted_server: LocalServer) -> medkg.ClientConfig:
    return medkg.ClientConfig(address=prompted_server.address, tenant="options", max_batch_texts=16)


@pytest.fixture(scope="module")
def client(config: medkg.ClientConfig) -> medkg.EmbeddingClient:
    return medkg.EmbeddingClient(config)


@pytest.fixture(scope="module")
def exact(client: medkg.EmbeddingClient) -> npt.NDArray[np.float32]:
    return client.embed(TEXTS).as_float32()


def cosines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def error_bound(result: medkg.EmbeddingResult, exact: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """How far rounding may move an element: half a unit of the last place that the type has."""
    if result.scales is not None:
        return np.broadcast_to(result.scales[:, None] / 2, exact.shape)
    return np.abs(exact) * {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[result.dtype]


@pytest.mark.parametrize(
    ("dtype", "of_numpy"), [("float32", "f4"), ("float16", "f2"), ("bfloat16", "u2"), ("int8", "i1")]
)
def test_each_type_tells_of_the_same_vectors(
    client: medkg.EmbeddingClient, exact: npt.NDArray[np.float32], dtype: Any, of_numpy: str
) -> None:
    result = client.embed(TEXTS, dtype=dtype)
    assert (result.dtype, result.dimension, result.usage.calls) == (dtype, DIMENSION, 4)
    assert (result.vectors.dtype, result.vectors.shape) == (np.dtype(of_numpy), (50, DIMENSION))
    assert (result.scales is None) == (dtype != "int8")
    values = result.as_float32()
    assert (values.dtype, values.shape) == (np.float32, (50, DIMENSION))
    # 1e-6: texts are computed in other company each time, which moves the last places of f32.
    bound = error_bound(result, exact).astype(np.float64) + 1e-6
    assert np.all(np.abs(values - exact) <= bound)
    angle = np.linalg.norm(bound, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.all(cosines(values, exact) >= np.sqrt(1 - angle**2))
    if dtype == "float32":
        assert values is result.vectors, "nothing is copied"


def test_integers_use_the_whole_range(client: medkg.EmbeddingClient, exact: npt.NDArray[np.float32]) -> None:
    result = client.embed(TEXTS, dtype="int8")
    assert result.scales is not None
    assert (result.scales.dtype, result.scales.shape) == (np.float32, (50,))
    np.testing.assert_allclose(result.scales, np.abs(exact).max(1) / 127, rtol=1e-4)
    assert (np.abs(result.vectors.astype(int)).max(1) == 127).all()


@pytest.mark.parametrize("dimensions", [None, 100])
def test_bits_are_signs(client: medkg.EmbeddingClient, exact: npt.NDArray[np.float32], dimensions: int | None) -> None:
    result = client.embed(TEXTS, dtype="binary", dimensions=dimensions)
    width = dimensions or DIMENSION
    assert (result.vectors.dtype, result.vectors.shape) == (np.uint8, (50, -(-width // 8)))
    assert (result.dimension, result.scales) == (width, None)
    signs = result.as_float32()
    clear = np.abs(exact[:, :width]) > 1e-6
    np.testing.assert_array_equal(signs[clear], np.sign(exact[:, :width])[clear])
    assert signs.shape == (50, width)
    assert signs.dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "binary"])
def test_arrays_of_every_type_own_the_memory_that_rust_wrote(client: medkg.EmbeddingClient, dtype: Any) -> None:
    vectors: Any = client.embed(TEXTS, dtype=dtype).vectors
    assert vectors.flags.c_contiguous
    assert vectors.flags.writeable
    owner = vectors
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert type(owner.base).__name__ == "PySliceContainer", "the elements were copied"


def test_fewer_elements_are_the_first_ones_at_unit_length(
    client: medkg.EmbeddingClient, exact: npt.NDArray[np.float32]
) -> None:
    result = client.embed(TEXTS, dimensions=64)
    expected = exact[:, :64] / np.linalg.norm(exact[:, :64], axis=1, keepdims=True)
    assert (result.vectors.shape, result.dimension) == ((50, 64), 64)
    np.testing.assert_allclose(result.vectors, expected, atol=1e-5)
    with pytest.raises(medkg.EmbeddingValidationError, match=r"options\.dimensions is 385.* has 384"):
        client.embed(TEXTS, dimensions=385)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "8", 1 << 40])
def test_a_number_of_elements_is_a_number(client: medkg.EmbeddingClient, wrong: Any) -> None:
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        client.embed(TEXTS, dimensions=wrong)
    assert caught.value.field_violations[0][0] == "dimensions"
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        client.embed_sparse(TEXTS, max_terms=wrong)
    assert caught.value.field_violations[0][0] == "max_terms"


def test_prompts_go_before_the_texts(client: medkg.EmbeddingClient, exact: npt.NDArray[np.float32]) -> None:
    expected = client.embed([f"query: {text}" for text in TEXTS])
    assert np.abs(expected.as_float32() - exact).max() > 1e-2
    for result in (
        client.embed(TEXTS, instruction="query: "),
        client.embed(TEXTS, model="named", prompt_name="query"),
        client.embed(TEXTS, model="by-default"),
    ):
        np.testing.assert_allclose(result.vectors, expected.vectors, atol=1e-5)
        np.testing.assert_array_equal(result.token_counts, expected.token_counts)
    for result in (client.embed(TEXTS, model="named"), client.embed(TEXTS, model="by-default", instruction="")):
        np.testing.assert_allclose(result.vectors, exact, atol=1e-5)


def test_a_prompt_that_there_is_not_is_named(client: medkg.EmbeddingClient) -> None:
    with pytest.raises(medkg.EmbeddingValidationError, match="known: passage, query") as caught:
        client.embed(TEXTS, model="named", prompt_name="document")
    assert caught.value.field_violations[0][0] == "options.prompt_name"
    with pytest.raises(medkg.EmbeddingValidationError, match="give one of them"):
        client.embed(TEXTS, model="named", prompt_name="query", instruction="x")
    for field in ("prompt_name", "instruction"):
        for wrong in (3, b"query", "\ud800"):
            with pytest.raises(medkg.EmbeddingValidationError) as caught:
                client.embed(TEXTS, **{field: wrong})  # type: ignore[arg-type]
            assert caught.value.field_violations[0][0] == field


def test_either_end_may_be_cut_off(client: medkg.EmbeddingClient) -> None:
    words = ["heart", "blood", "dose", "risk", "drug", "pain", "lung", "cell", "gene", "bone", "skin"] * 40
    texts = [*TEXTS[:20], " ".join(words), *TEXTS[20:]]
    left = client.embed(texts, truncation="left")
    assert (left.truncated, left.token_counts[20]) == ([20], 256)
    kept = client.embed([" ".join(words[-254:]), " ".join(words[:254])])
    np.testing.assert_allclose(left.vectors[20], kept.vectors[0], atol=1e-5)
    np.testing.assert_allclose(client.embed(texts).vectors[20], kept.vectors[1], atol=1e-5)


def test_models_tell_what_they_are(client: medkg.EmbeddingClient, server: LocalServer) -> None:
    models = client.models()
    assert [model.name for model in models] == ["all-MiniLM-L6-v2", "by-default", "named"]
    assert {(model.kind, model.state, model.detail, model.pooling) for model in models} == {
        ("dense", "ready", "", "mean")
    }
    assert all(isinstance(model.prompts, dict) for model in models)
    assert len(set(models)) == 3, "they can be put into sets"
    [reranker] = medkg.RerankingClient(address=server.address, tenant="options").models()
    assert (reranker.kind, reranker.state, reranker.pooling) == ("reranker", "ready", None)


def test_the_awaitable_client_takes_them_too(config: medkg.ClientConfig, client: medkg.EmbeddingClient) -> None:
    options: dict[str, Any] = {"dtype": "int8", "dimensions": 32, "instruction": "query: ", "truncation": "left"}

    async def work() -> medkg.EmbeddingResult:
        async with medkg.AsyncEmbeddingClient(config) as awaitable:
            with pytest.raises(medkg.ModelNotFoundError, match="sparse"):
                await awaitable.embed_sparse(TEXTS)
            return await awaitable.embed(TEXTS, **options)

    result, expected = asyncio.run(work()), client.embed(TEXTS, **options)
    assert result.vectors.shape == (50, 32)
    np.testing.assert_allclose(result.as_float32(), expected.as_float32(), atol=1e-2)
    again = pickle.loads(pickle.dumps(result))  # noqa: S301 - our own
    np.testing.assert_array_equal(again.as_float32(), result.as_float32())


def test_a_dense_model_makes_no_sparse_vectors(client: medkg.EmbeddingClient) -> None:
    with pytest.raises(medkg.ModelNotFoundError, match="sparse"):
        client.embed_sparse(TEXTS)
    with pytest.raises(medkg.EmbeddingValidationError, match=r"texts\[3\]"):
        client.embed_sparse([*TEXTS[:3], ""])


def test_sparse_rows_become_arrays(peer: Any, wire: Any) -> None:
    """What a sparse model answers, without the model: three texts, of which the second has no term."""
    weights = np.array([0.5, 1.5, 2.5], "<f4")
    peer.answer = wire.embedding.GenerateSparseEmbeddingsResponse(
        offsets=[0, 2, 2, 3],
        token_ids=[3, 9, 0],
        weights=weights.tobytes(),
        token_counts=[4, 2, 3],
        truncated=[2],
        model="splade",
        model_digest="ab",
        dimension=10,
    ).SerializeToString()
    client = medkg.EmbeddingClient(address=peer.address, tenant="options")
    told: list[tuple[int, int]] = []
    result = client.embed_sparse(["a", "b", "c"], max_terms=2, progress=lambda *done: told.append(done))
    for array, dtype, values in (
        (result.indptr, np.int64, [0, 2, 2, 3]),
        (result.indices, np.int32, [3, 9, 0]),
        (result.values, np.float32, weights),
        (result.token_counts, np.uint32, [4, 2, 3]),
    ):
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, values)
    assert (result.dimension, result.truncated, result.model, told) == (10, [2], "splade", [(3, 3)])
    indices, values = result.row(0)
    assert (indices.tolist(), values.tolist()) == ([3, 9], [0.5, 1.5])
    assert np.shares_memory(values, result.values)
    assert [len(part) for part in result.row(1)] == [0, 0]
    assert result.row(-1)[1].tolist() == [2.5]
    for outside in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            result.row(outside)


def test_results_can_be_looked_at_without_numpy() -> None:
    code = "import sys, medkg; medkg.EmbeddingResult, medkg.SparseEmbeddingResult; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
