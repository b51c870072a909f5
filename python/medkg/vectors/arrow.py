"""Arrow IPC and Parquet files of points, through pyarrow.

Apart from `medkg.vectors.files` so that one module imports pyarrow for it; `load` says which extra is missing.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medkg.results import ExportBatch, SparseVectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from medkg.results import CollectionInfo

__all__ = ["load"]


_INDICES, _VALUES = "sparse_indices", "sparse_values"


def load() -> Any:
    """The functions of this module, if pyarrow is there.

    Raises:
        ModuleNotFoundError: It is not; the message names the extra.
    """
    try:
        importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        message = "Arrow and Parquet files need pyarrow: pip install 'medkg[arrow]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return SimpleNamespace(
        write_ipc=_write_ipc, write_parquet=_write_parquet, read_ipc=_read_ipc, read_parquet=_read_parquet
    )


def _schema(dimension: int, metadata: dict[str, str], *, sparse: bool) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), dimension), nullable=False),
        pa.field("payload", pa.string()),
    ]
    if sparse:
        for name, kind in ((_INDICES, pa.int32()), (_VALUES, pa.float32())):
            columns.append(pa.field(name, pa.list_(pa.field("item", kind, nullable=False)), nullable=False))
    return pa.schema(columns, metadata=metadata)


def _record_batch(schema: Any, batch: ExportBatch) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    elements = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1))
    kind = schema.field("vector").type
    columns = [
        pa.array(batch.ids, pa.string()),
        pa.FixedSizeListArray.from_arrays(elements, type=kind),
        pa.array(batch.json_payloads, pa.string()),
    ]
    if batch.sparse is not None:
        ends = pa.array(np.asarray(batch.sparse.indptr, dtype=np.int32))
        for name, terms in ((_INDICES, np.asarray(batch.sparse.indices, np.int32)), (_VALUES, batch.sparse.values)):
            columns.append(pa.ListArray.from_arrays(ends, pa.array(terms), type=schema.field(name).type))
    return pa.record_batch(columns, schema=schema)


def _write(make: Callable[[Any], Any], schema: Any, batches: Iterable[ExportBatch]) -> int:
    points = 0
    with make(schema) as writer:
        for batch in batches:
            writer.write_batch(_record_batch(schema, batch))
            points += len(batch.ids)
    return points


def _write_ipc(file: IO[bytes], info: CollectionInfo, metadata: dict[str, str], batches: Iterable[ExportBatch]) -> int:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return _write(lambda schema: pa.ipc.new_file(file, schema), _schema_of(info, metadata), batches)


def _write_parquet(
    file: IO[bytes], info: CollectionInfo, metadata: dict[str, str], batches: Iterable[ExportBatch]
) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    return _write(lambda schema: pq.ParquetWriter(file, schema), _schema_of(info, metadata), batches)


def _schema_of(info: CollectionInfo, metadata: dict[str, str]) -> Any:
    return _schema(info.dimension, metadata, sparse=info.sparse_dimension > 0)


def _told(metadata: dict[bytes, bytes] | None) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in (metadata or {}).items() if key.startswith(b"medkg.")}


def _points(batch: Any) -> ExportBatch:
    column = batch.column("vector")
    vectors = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    rows = vectors.reshape(batch.num_rows, column.type.list_size)
    return ExportBatch(batch.column("id").to_pylist(), rows, batch.column("payload").to_pylist(), _sparse(batch))


def _sparse(batch: Any) -> SparseVectors | None:
    if _INDICES not in batch.schema.names:
        return None
    indices, values = batch.column(_INDICES), batch.column(_VALUES)
    # Offsets of a slice do not begin at 0; what `flatten` gives does.
    ends = np.asarray(indices.offsets, dtype=np.int64)
    return SparseVectors(
        ends - ends[0],
        np.ascontiguousarray(indices.flatten().to_numpy(zero_copy_only=False), dtype=np.int32),
        np.ascontiguousarray(values.flatten().to_numpy(zero_copy_only=False), dtype=np.float32),
    )


@contextmanager
def _read_ipc(path: Path) -> Iterator[tuple[dict[str, str], Iterator[ExportBatch]]]:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batches = (_points(reader.get_batch(number)) for number in range(reader.num_record_batches))
        yield _told(reader.schema.metadata), batches


@contextmanager
def _read_parquet(path: Path, rows: int) -> Iterator[tuple[dict[str, str], Iterator[ExportBatch]]]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    with pq.ParquetFile(path) as file:
        yield _told(file.schema_arrow.metadata), (_points(batch) for batch in file.iter_batches(rows))
