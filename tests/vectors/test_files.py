"""Collections as files: exported from a gpu-server, read by pyarrow and safetensors, imported into every home."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
from safetensors.numpy import load_file

import medkg
from medkg.vectors import GpuServerStore, LanceStore, MilvusStore, VectorStore
from medkg.vectors.files import export_collection, import_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

FORMATS = (".arrow", ".parquet", ".safetensors")
COUNT, WIDTH = 20_000, 24


@pytest.fixture(scope="module")
def tenant() -> str:
    return f"files-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def client(server: LocalServer, tenant: str) -> Iterator[medkg.VectorClient]:
    with medkg.VectorClient(address=server.address, tenant=tenant) as client:
        yield client


def ids() -> list[str]:
    return [f"id-é-{row}" if row % 5 == 0 else f"{row}" for row in range(COUNT)]


def payload(row: int) -> dict[str, Any] | None:
    return {"n": row, "x": row / 3, "text": "é👩\u200d⚕️", "list": [1, None, {"deep": True}]} if row % 3 else None


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rows = np.random.default_rng(4).standard_normal((COUNT, WIDTH)).astype(np.float32)
    # What rounding or a detour through text would lose.
    rows[0, :4] = [np.float32(1e-40), np.float32(9.9e14), -0.0, np.nextafter(np.float32(1), np.float32(2))]
    return rows


@pytest.fixture(scope="module")
def name(client: medkg.VectorClient, vectors: np.ndarray) -> str:
    client.create_collection("whole", WIDTH, "dot", storage="bf16")
    client.upsert("whole", ids(), vectors, [payload(row) for row in range(COUNT)])
    return "whole"


def test_an_export_is_every_point_once_as_it_was_written(
    client: medkg.VectorClient, name: str, vectors: np.ndarray
) -> None:
    found: dict[str, tuple[bytes, dict[str, Any] | None]] = {}
    batches = 0
    with client.export(name) as export:
        assert (export.collection.name, export.collection.dimension) == (name, WIDTH)
        assert (export.collection.metric, export.collection.storage) == ("dot", "bf16")
        for batch in export:
            batches += 1
            assert batch.vectors.shape == (len(batch.ids), WIDTH)
            for one, vector, stored in zip(batch.ids, batch.vectors, batch.payloads, strict=True):
                assert one not in found
                found[one] = (vector.tobytes(), stored)
    assert batches > 1
    assert found == {one: (vectors[row].tobytes(), payload(row)) for row, one in enumerate(ids())}


def test_an_export_is_one_moment_however_much_is_written_meanwhile(client: medkg.VectorClient) -> None:
    client.create_collection("moment", WIDTH, "dot")
    keys = [f"{row}" for row in range(COUNT)]
    client.upsert("moment", keys, np.full((COUNT, WIDTH), 1, dtype=np.float32))
    with client.export("moment") as export:
        assert client.upsert("moment", keys, np.full((COUNT, WIDTH), 2, dtype=np.float32)).replaced == COUNT
        client.upsert("moment", ["new"], np.full((1, WIDTH), 2, dtype=np.float32))
        assert client.delete("moment", keys[:100]) == 100
        batches = list(export)
    seen = [one for batch in batches for one in batch.ids]
    assert sorted(seen) == sorted(keys)
    assert all(np.all(batch.vectors == 1) for batch in batches)


def test_it_can_be_closed_by_another_thread_and_is_refused_like_all_calls(
    client: medkg.VectorClient, name: str
) -> None:
    export = client.export(name)
    next(export)
    thread = threading.Thread(target=export.close)
    thread.start()
    thread.join()
    assert list(export) == []
    with pytest.raises(medkg.CollectionNotFoundError):
        client.export("nothing")
    with pytest.raises(medkg.CollectionNotFoundError):
        client.export(name, tenant="stranger")
    client.create_collection("no-points", 3)
    with client.export("no-points") as empty:
        assert (empty.collection.dimension, list(empty)) == (3, [])


def test_too_many_at_once_are_told_to_wait(client: medkg.VectorClient) -> None:
    name = "large"
    # More than what is under way between the two may hold.
    client.create_collection(name, 256, "dot")
    rows = np.ones((30_000, 256), dtype=np.float32)
    client.upsert(name, [f"{row}" for row in range(len(rows))], rows)
    with medkg.VectorClient(address=client.config.address, tenant=client.config.tenant, max_attempts=1) as impatient:
        exports = [client.export(name) for _ in range(4)]
        try:
            with pytest.raises((medkg.RateLimitedError, medkg.ServiceTimeoutError)):
                impatient.export(name, timeout=0.5)
        finally:
            for export in exports:
                export.close()
        # Their places are free again.
        with client.export(name, timeout=60) as export:
            assert next(export).ids


def test_the_awaitable_twin(client: medkg.VectorClient, name: str) -> None:
    async def read() -> int:
        async with medkg.connect_async(client.config) as services:
            points = 0
            async with await services.vector.export(name) as export:
                assert export.collection.name == name
                async for batch in export:
                    points += len(batch.ids)
            closed = await services.vector.export(name)
            await closed.aclose()
            assert [batch async for batch in closed] == []
            return points

    assert asyncio.run(read()) == COUNT


def by_id(found: Any) -> dict[str, tuple[bytes, Any]]:
    return {one: (vector.tobytes(), stored) for one, vector, stored in found}


def read_columns(table: pa.Table) -> dict[str, tuple[bytes, Any]]:
    rows = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)
    stored = [None if text is None else json.loads(text) for text in table.column("payload").to_pylist()]
    return by_id(zip(table.column("id").to_pylist(), rows, stored, strict=True))


def read_arrow(path: Path) -> tuple[dict[str, str], dict[str, tuple[bytes, Any]]]:
    with pa.ipc.open_file(path) as reader:
        table = reader.read_all()
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}, read_columns(table)


def read_parquet(path: Path) -> tuple[dict[str, str], dict[str, tuple[bytes, Any]]]:
    table = pq.read_table(path)
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}, read_columns(table)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, tuple[bytes, Any]]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert tensors["vectors"].dtype == np.float32

    def texts(data: str, offsets: str) -> list[str]:
        whole, ends = tensors[data].tobytes(), tensors[offsets].tolist()
        return [whole[begin:end].decode() for begin, end in itertools.pairwise(ends)]

    stored = [json.loads(text) if text else None for text in texts("payloads", "payload_offsets")]
    return metadata, by_id(zip(texts("ids", "id_offsets"), tensors["vectors"], stored, strict=True))


@pytest.mark.parametrize("ending", FORMATS)
def test_files_are_read_by_their_own_libraries_and_come_back_equal(
    client: medkg.VectorClient, name: str, vectors: np.ndarray, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"c{ending}"
    assert export_collection(client, name, path) == COUNT
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "nothing is left beside it"
    read: Callable[[Path], Any] = {".arrow": read_arrow, ".parquet": read_parquet, ".safetensors": read_safetensors}[
        ending
    ]
    metadata, found = read(path)
    assert found == {one: (vectors[row].tobytes(), payload(row)) for row, one in enumerate(ids())}
    told = {"format": "1", "name": name, "dimension": str(WIDTH), "metric": "dot", "storage": "bf16"}
    assert {key: metadata[f"medkg.{key}"] for key in told} == told
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-back")
    assert import_collection(store, path, f"from{ending}") == COUNT
    back = store.fetch(f"from{ending}", ids())
    assert back.vectors is not None
    np.testing.assert_array_equal(back.vectors.view(np.uint32), vectors.view(np.uint32))
    assert back.payloads == [payload(row) for row in range(COUNT)]
    with pytest.raises(medkg.AlreadyExistsError):
        import_collection(store, path, f"from{ending}")
    assert import_collection(store, path, f"from{ending}", exist_ok=True) == COUNT
    assert store.count(f"from{ending}") == COUNT


@pytest.mark.parametrize("ending", FORMATS)
def test_an_empty_collection_makes_a_file_too(client: medkg.VectorClient, tmp_path: Path, ending: str) -> None:
    own = f"empty-{ending[1:]}"
    client.create_collection(own, 7, "l2")
    assert export_collection(client, own, tmp_path / f"e{ending}") == 0
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-empty")
    assert import_collection(store, tmp_path / f"e{ending}") == 0
    [info] = [info for info in store.list() if info.name == own]
    assert (info.dimension, info.metric) == (7, "l2")


@pytest.mark.parametrize("home", ["lance", "milvus"])
def test_a_collection_moves_to_another_home(client: medkg.VectorClient, tmp_path: Path, home: str) -> None:
    rows = np.random.default_rng(9).standard_normal((500, WIDTH)).astype(np.float32)
    moved, keys = f"moved-{home}", [f"{row}" for row in range(500)]
    stored = [payload(row) for row in range(500)]
    client.create_collection(moved, WIDTH)
    client.upsert(moved, keys, rows, stored)
    export_collection(client, moved, tmp_path / "c.parquet")
    store: VectorStore
    if home == "lance":
        store = LanceStore(tmp_path / "lance", tenant="t")
    else:
        store = MilvusStore(tmp_path / "milvus.db", tenant="t")
    with store:
        assert import_collection(store, tmp_path / "c.parquet") == 500
        back = store.fetch(moved, keys)
        assert back.vectors is not None
        np.testing.assert_array_equal(back.vectors, rows)
        assert back.payloads == stored
        here, there = (
            one.search(moved, rows[:5], 10) for one in (store, GpuServerStore(client, tenant=client.config.tenant))
        )
        assert [[hit.id for hit in hits] for hits in here] == [[hit.id for hit in hits] for hits in there]


def test_files_that_are_none_of_ours_are_refused(client: medkg.VectorClient, name: str, tmp_path: Path) -> None:
    store = GpuServerStore(client, tenant=f"{client.config.tenant}-none")
    with pytest.raises(medkg.errors.ConfigError, match=r"\.csv"):
        export_collection(client, name, tmp_path / "c.csv")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(medkg.errors.ConfigError, match="safetensors"):
        import_collection(store, tmp_path / "x.safetensors")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(medkg.errors.ConfigError, match="export_collection"):
        import_collection(store, tmp_path / "x.parquet")
    whole = tmp_path / "whole.safetensors"
    export_collection(client, name, whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(medkg.errors.ConfigError, match="cut off"):
        import_collection(store, tmp_path / "cut.safetensors", "cut")
    # What failed in the middle leaves no file.
    with pytest.raises(medkg.CollectionNotFoundError):
        export_collection(client, "nothing", tmp_path / "nothing.arrow")
    assert not (tmp_path / "nothing.arrow").exists()
