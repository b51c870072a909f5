"""Embeddings as Arrow arrays, over the memory that they came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medkg.local import LocalServer

TEXTS = ["Aspirin inhibits platelet aggregation.", "Metformin lowers blood glucose.", "A"]


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[medkg.EmbeddingClient]:
    with medkg.EmbeddingClient(address=server.address, tenant="arrow", timeout=60) as made:
        yield made


@pytest.mark.parametrize(
    ("dtype", "kind", "width"),
    [
        ("float32", pa.float32(), 384),
        ("float16", pa.float16(), 384),
        ("bfloat16", pa.uint16(), 384),
        ("int8", pa.int8(), 384),
        ("binary", pa.uint8(), 48),
    ],
)
def test_vectors_are_lists_of_one_length_and_not_copied(
    dtype: Any, kind: pa.DataType, width: int, client: medkg.EmbeddingClient
) -> None:
    result = client.embed(TEXTS, dtype=dtype)
    for array in (result.to_arrow(), pa.array(result)):
        assert array.type == pa.list_(pa.field("item", kind, nullable=False), width)
        assert (len(array), array.null_count) == (3, 0)
        elements = array.flatten()
        assert elements.buffers()[1].address == result.vectors.ctypes.data, "the same memory"
        rows = elements.to_numpy(zero_copy_only=True).reshape(3, width)
        np.testing.assert_array_equal(rows, result.vectors)


def test_an_array_outlives_its_result(client: medkg.EmbeddingClient) -> None:
    result = client.embed(TEXTS)
    expected, array = result.vectors.copy(), pa.array(result)
    del result
    client.embed(TEXTS * 50)
    np.testing.assert_array_equal(array.flatten().to_numpy().reshape(3, 384), expected)


def test_a_table_takes_a_result_and_a_schema_that_asks_for_another_type_is_served(
    client: medkg.EmbeddingClient,
) -> None:
    result = client.embed(TEXTS)
    table = pa.table({"text": TEXTS, "vector": pa.array(result)})
    assert table.num_rows == 3
    wide = pa.array(result, pa.list_(pa.field("item", pa.float32(), nullable=False), 384))
    assert wide.type.list_size == 384
