"""Arrow tables as the content of files, and vectors as a column: pyarrow, for what medkg's assets keep."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medkg.vectors import arrow

if TYPE_CHECKING:
    import numpy.typing as npt

TableFormat: TypeAlias = Literal["parquet", "arrow"]
"""How a file of a table is written."""

_ROWS_PER_GROUP: Final = 8192


def write(table: pa.Table, form: TableFormat) -> memoryview:
    """The content of a file that holds the table."""
    sink = pa.BufferOutputStream()
    if form == "parquet":
        pq.write_table(table, sink, row_group_size=_ROWS_PER_GROUP, compression="zstd")
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_PER_GROUP)
    return memoryview(sink.getvalue())


def read(content: bytes, form: TableFormat) -> pa.Table:
    """The table of a file's content.

    Raises:
        pyarrow.ArrowInvalid: It is no such file, or not whole.
    """
    if form == "parquet":
        return pq.read_table(io.BytesIO(content))
    with pa.ipc.open_file(content) as reader:
        return reader.read_all()


def rows_of(vectors: npt.NDArray[np.float32]) -> pa.Array:
    """An array of shape (rows, dimension) as fixed-size lists of float32."""
    return arrow.load().rows(np.ascontiguousarray(vectors, dtype=np.float32))


def vectors_of(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of fixed-size lists as an array of shape (rows, dimension), float32."""
    flat = column.combine_chunks()
    flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) and flat.num_chunks else flat
    values = np.asarray(flat.flatten(), dtype=np.float32) if len(column) else np.empty(0, np.float32)
    return values.reshape(len(column), column.type.list_size)
