"""Collections with sparse vectors as files: read by pyarrow and safetensors, and back bit by bit."""

from __future__ import annotations

import json
import struct
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import medkg
from medkg.vectors import GpuServerStore, LanceStore
from medkg.vectors.files import export_collection, import_collection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from medkg.local import LocalServer

FORMATS = (".arrow", ".parquet", ".safetensors")
COUNT, WIDTH, TERMS = 20_000, 6, 2**31 - 1

Row = tuple[bytes, bytes]
"""Indices as int32 and values as float32."""


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[medkg.VectorClient]:
    with medkg.VectorClient(address=server.address, tenant=f"sparse-files-{uuid.uuid4().hex[:8]}") as client:
        yield client


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return [f"é{row}" for row in range(COUNT)]


@pytest.fixture(scope="module")
def dense() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((COUNT, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def sparse() -> medkg.SparseVectors:
    """Every third row without terms; the largest index, the longest row, and weights that a detour would round."""
    random = np.random.default_rng(2)
    rows = [np.unique(random.integers(0, 5_000, size=row % 3 * 20)) for row in range(COUNT)]
    rows[1] = np.array([0, TERMS - 1])
    rows[2] = np.arange(4_096)
    values = random.standard_normal(sum(map(len, rows))).astype(np.float32)
    values[:2] = np.float32(1e-40), np.nextafter(np.float32(1), np.float32(2))
    indptr = np.cumsum([0, *map(len, rows)])
    return medkg.SparseVectors(indptr, np.concatenate(rows).astype(np.int32), values)


@pytest.fixture(scope="module")
def name(client: medkg.VectorClient, ids: list[str], dense: np.ndarray, sparse: medkg.SparseVectors) -> str:
    client.create_collection("both", WIDTH, "dot", sparse_dimension=TERMS)
    payloads = [{"n": row} if row % 2 else None for row in range(COUNT)]
    client.upsert("both", ids, dense, payloads, sparse=sparse)
    return "both"


def rows_of(indptr: Any, indices: Any, values: Any) -> list[Row]:
    indices, values = np.asarray(indices, dtype=np.int32), np.asarray(values, dtype=np.float32)
    parts = [slice(indptr[row], indptr[row + 1]) for row in range(len(indptr) - 1)]
    return [(indices[part].tobytes(), values[part].tobytes()) for part in parts]


def by_id(ids: list[str], sparse: medkg.SparseVectors) -> dict[str, Row]:
    return dict(zip(ids, rows_of(sparse.indptr, sparse.indices, sparse.values), strict=True))


def read_table(table: pa.Table) -> tuple[dict[str, str], dict[str, Row]]:
    indices, values = (table.column(f"sparse_{what}") for what in ("indices", "values"))
    assert (indices.type.value_type, values.type.value_type) == (pa.int32(), pa.float32())
    rows = [
        (np.array(i, np.int32).tobytes(), np.array(v, np.float32).tobytes())
        for i, v in zip(indices.to_pylist(), values.to_pylist(), strict=True)
    ]
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return metadata, dict(zip(table.column("id").to_pylist(), rows, strict=True))


def read(path: Path) -> tuple[dict[str, str], dict[str, Row]]:
    """A file as its own library reads it."""
    if path.suffix == ".parquet":
        return read_table(pq.read_table(path))
    if path.suffix == ".arrow":
        with pa.ipc.open_file(path) as reader:
            return read_table(reader.read_all())
    tensors = load_file(path)
    assert (tensors["sparse_indices"].dtype, tensors["sparse_values"].dtype) == (np.int32, np.float32)
    ends, texts = tensors["id_offsets"], tensors["ids"].tobytes()
    ids = [texts[ends[row] : ends[row + 1]].decode() for row in range(len(ends) - 1)]
    rows = rows_of(*(tensors[f"sparse_{what}"] for what in ("indptr", "indices", "values")))
    return header(path)["__metadata__"], dict(zip(ids, rows, strict=True))


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    told: dict[str, Any] = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return told


def test_an_export_has_the_sparse_vectors_of_its_points(
    client: medkg.VectorClient, name: str, ids: list[str], sparse: medkg.SparseVectors
) -> None:
    found: dict[str, Row] = {}
    batches = 0
    with client.export(name) as export:
        for batch in export:
            batches += 1
            assert batch.sparse is not None
            found |= by_id(batch.ids, batch.sparse)
    assert batches > 1
    assert found == by_id(ids, sparse)
    client.create_collection("dense-only", WIDTH)
    client.upsert("dense-only", ["a"], np.ones((1, WIDTH), np.float32))
    with client.export("dense-only") as export:
        assert [batch.sparse for batch in export] == [None]


@pytest.mark.parametrize("ending", FORMATS)
def test_files_are_read_by_their_own_libraries_and_come_back_equal(
    client: medkg.VectorClient,
    name: str,
    ids: list[str],
    dense: np.ndarray,
    sparse: medkg.SparseVectors,
    tmp_path: Path,
    ending: str,
) -> None:
    path = tmp_path / f"c{ending}"
    assert export_collection(client, name, path) == COUNT
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "nothing is left beside it"
    metadata, found = read(path)
    assert found == by_id(ids, sparse)
    assert (metadata["medkg.format"], metadata["medkg.sparse_dimension"]) == ("2", str(TERMS))
    store, copy = GpuServerStore(client, tenant=f"{client.config.tenant}-back"), f"from{ending}"
    assert import_collection(store, path, copy) == COUNT
    back = store.fetch(copy, ids, with_sparse=True)
    assert back.sparse is not None
    assert back.vectors is not None
    assert by_id(back.ids, back.sparse) == by_id(ids, sparse)
    np.testing.assert_array_equal(back.vectors, dense)
    last = int(sparse.indptr[20])
    asked = medkg.SparseVectors(sparse.indptr[:21], sparse.indices[:last], sparse.values[:last])
    here = store.search(copy, dense[:20], 10, sparse=asked)
    assert here == client.search(name, dense[:20], 10, sparse=asked)
    assert any(hit.sparse_rank for hits in here for hit in hits)
    # A collection without sparse vectors is another one.
    store.create(f"dense{ending}", WIDTH, "dot")
    with pytest.raises(medkg.AlreadyExistsError):
        import_collection(store, path, f"dense{ending}", exist_ok=True)
    assert import_collection(store, path, copy, exist_ok=True) == COUNT


@pytest.mark.parametrize("ending", FORMATS)
def test_a_collection_of_which_no_point_has_one(client: medkg.VectorClient, tmp_path: Path, ending: str) -> None:
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-none")
    for points in (0, 3):
        own = f"none-{points}-{ending[1:]}"
        client.create_collection(own, 2, sparse_dimension=9)
        if points:
            client.upsert(own, [f"{row}" for row in range(points)], np.ones((points, 2), np.float32))
        assert export_collection(client, own, tmp_path / f"{points}{ending}") == points
        assert import_collection(store, tmp_path / f"{points}{ending}") == points
        assert [info.sparse_dimension for info in store.list() if info.name == own] == [9]


def test_a_home_without_sparse_vectors_refuses_the_file_and_makes_nothing(
    client: medkg.VectorClient, name: str, tmp_path: Path
) -> None:
    export_collection(client, name, tmp_path / "c.parquet")
    with LanceStore(tmp_path / "lance", tenant="t") as store:
        with pytest.raises(medkg.ServiceError, match="sparse_dimension") as caught:
            import_collection(store, tmp_path / "c.parquet")
        assert caught.value.code == "UNIMPLEMENTED"
        assert store.list() == []


def test_files_whose_sparse_vectors_do_not_fit_are_refused(
    client: medkg.VectorClient, name: str, tmp_path: Path
) -> None:
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-wrong")
    whole = tmp_path / "whole.safetensors"
    export_collection(client, name, whole)
    tensors, metadata = load_file(whole), header(whole)["__metadata__"]
    for what, tensor in (
        ("do not fit", {"sparse_values": tensors["sparse_values"][1:]}),
        ("do not fit", {"sparse_indptr": tensors["sparse_indptr"][:-1]}),
        ("no tensor sparse_indices", {"sparse_indices": None}),
    ):
        kept = {key: value for key, value in {**tensors, **tensor}.items() if value is not None}
        save_file(kept, tmp_path / "wrong.safetensors", metadata)
        with pytest.raises(medkg.errors.ConfigError, match=what):
            import_collection(store, tmp_path / "wrong.safetensors", "wrong", exist_ok=True)
    assert store.count("wrong") == 0
    export_collection(client, name, tmp_path / "whole.parquet")
    table = pq.read_table(tmp_path / "whole.parquet")
    pq.write_table(table.drop_columns("sparse_values"), tmp_path / "less.parquet")
    with pytest.raises(medkg.errors.ConfigError, match="no column sparse_values"):
        import_collection(store, tmp_path / "less.parquet", "wrong", exist_ok=True)
    # As many in all, but not in each row.
    values = table.column("sparse_values").to_pylist()
    values[values.index(max(values, key=len))].append(1.0)
    short = next(row for row in reversed(values) if row)
    short.pop()
    at = table.schema.get_field_index("sparse_values")
    moved = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    pq.write_table(moved, tmp_path / "moved.parquet")
    with pytest.raises(medkg.errors.ConfigError, match="in sparse_indices and"):
        import_collection(store, tmp_path / "moved.parquet", "wrong", exist_ok=True)


def test_a_column_that_was_written_anew_with_nulls_is_taken(client: medkg.VectorClient, tmp_path: Path) -> None:
    client.create_collection("nulls", 2, sparse_dimension=9)
    rows = medkg.SparseVectors(np.array([0, 0, 2]), np.array([3, 8]), np.array([1, 2], np.float32))
    client.upsert("nulls", ["a", "b"], np.ones((2, 2), np.float32), sparse=rows)
    export_collection(client, "nulls", tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    for column, kind in (("sparse_indices", pa.uint32()), ("sparse_values", pa.float32())):
        lists = [one or None for one in table.column(column).to_pylist()]
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(lists, pa.large_list(kind)))
    pq.write_table(table, tmp_path / "anew.parquet")
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-anew")
    assert import_collection(store, tmp_path / "anew.parquet") == 2
    back = store.fetch("nulls", ["a", "b"], with_sparse=True).sparse
    assert back is not None
    assert by_id(["a", "b"], back) == by_id(["a", "b"], rows)
