"""Arrow IPC and Parquet files of points, and arrays of vectors, through pyarrow.

Apart from `medkg.vectors.files` so that one module imports pyarrow for it; `load` says which extra is missing.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medkg.extras import packages_of
from medkg.results import ExportBatch, SparseVectors
from medkg.vectors import layout

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
    with packages_of("arrow", "pyarrow", user="Arrow and Parquet files need"):
        importlib.import_module("pyarrow")
    return SimpleNamespace(
        write_ipc=_write_ipc,
        write_parquet=_write_parquet,
        read_ipc=_read_ipc,
        read_parquet=_read_parquet,
        rows=_rows_of,
    )


def _rows_of(matrix: Any) -> Any:
    """The rows of a C-contiguous numpy array as lists of one length, over its memory."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    elements = pa.array(matrix.reshape(-1))
    kind = pa.list_(pa.field("item", elements.type, nullable=False), matrix.shape[1])
    return pa.FixedSizeListArray.from_arrays(elements, type=kind)


def _list_of(kind: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return pa.list_(pa.field("item", kind, nullable=False))


def _schema(info: CollectionInfo) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), info.dimension), nullable=False),
        pa.field("payload", pa.string()),
    ]
    if info.sparse_dimension:
        columns += [
            pa.field(_INDICES, _list_of(pa.int32()), nullable=False),
            pa.field(_VALUES, _list_of(pa.float32()), nullable=False),
        ]
    return pa.schema(columns, metadata=layout.metadata(info))


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
        ends = pa.array(batch.sparse.indptr.astype(np.int32))
        columns += [
            pa.ListArray.from_arrays(ends, pa.array(flat), type=schema.field(name).type)
            for name, flat in ((_INDICES, batch.sparse.indices), (_VALUES, batch.sparse.values))
        ]
    return pa.record_batch(columns, schema=schema)


def _write(make: Callable[[Any], Any], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    points, schema = 0, _schema(info)
    with make(schema) as writer:
        for batch in batches:
            writer.write_batch(_record_batch(schema, batch))
            points += len(batch.ids)
    return points


def _write_ipc(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    return _write(lambda schema: pa.ipc.new_file(file, schema), info, batches)


def _write_parquet(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    return _write(lambda schema: pq.ParquetWriter(file, schema), info, batches)


def _told(schema: Any) -> CollectionInfo:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    ours = {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"medkg.")}
    info = layout.info(ours)
    missing = {_INDICES, _VALUES}.difference(schema.names)
    if info.sparse_dimension and missing:
        raise layout.wrong("path", f"has no column {min(missing)}")
    return info


def _points(batch: Any, info: CollectionInfo) -> ExportBatch:
    column = batch.column("vector")
    vectors = np.ascontiguousarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    rows = vectors.reshape(batch.num_rows, column.type.list_size)
    sparse = _rows(batch.column(_INDICES), batch.column(_VALUES)) if info.sparse_dimension else None
    return ExportBatch(batch.column("id").to_pylist(), rows, batch.column("payload").to_pylist(), sparse)


def _rows(indices: Any, values: Any) -> SparseVectors:
    # An extra, whose functions are made when it is imported: no checker knows them.
    pc: Any = importlib.import_module("pyarrow.compute")

    # Null where somebody else wrote the file anew: no terms, as an empty list.
    lengths, others = (pc.fill_null(pc.list_value_length(column), 0).to_numpy() for column in (indices, values))
    if not np.array_equal(lengths, others):
        row = int(np.flatnonzero(lengths != others)[0])
        problem = f"has a point with {lengths[row]} in {_INDICES} and {others[row]} in {_VALUES}"
        raise layout.wrong("path", problem)
    flat = (column.flatten().to_numpy(zero_copy_only=False) for column in (indices, values))
    return SparseVectors(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        np.ascontiguousarray(next(flat), dtype=np.int32),
        np.ascontiguousarray(next(flat), dtype=np.float32),
    )


@contextmanager
def _read_ipc(path: Path) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    import pyarrow as pa  # noqa: PLC0415 - an extra

    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        info = _told(reader.schema)
        yield info, (_points(reader.get_batch(number), info) for number in range(reader.num_record_batches))


@contextmanager
def _read_parquet(path: Path, rows: int) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    with pq.ParquetFile(path) as file:
        info = _told(file.schema_arrow)
        yield info, (_points(batch, info) for batch in file.iter_batches(rows))
