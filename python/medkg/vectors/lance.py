"""The home in LanceDB: a folder or a bucket, no server. It comes with `pip install 'medkg[lance]'`.

A tenant is a folder below the address, a collection a table in it: id, vector, payload as JSON text; the metric is in
the table's metadata. No index is made, and one that somebody made is passed by, so that search is exact.

Each upsert is one commit. Tables are opened anew for each call, so that what other processes wrote is seen. LanceDB
runs threads of its own: open a store after forking, not before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medkg.extras import packages_of
from medkg.results import CollectionInfo
from medkg.vectors.exact import ExactStore, Rows

with packages_of("lance", "lancedb", "pyarrow", user="medkg.vectors.LanceStore needs"):
    import lancedb
    import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["LanceStore", "read_table", "write_table"]

_TABLE: Final = "rows"
_PROPERTIES: Final = b"medkg"
_PAGE: Final = 1_000


class LanceStore(ExactStore):
    """Collections in LanceDB."""

    __slots__ = ("_database",)

    def __init__(self, uri: str | Path, *, tenant: str, storage_options: dict[str, str] | None = None) -> None:
        """Open a folder or the address of object storage.

        Args:
            uri: Such as ``build/lance`` or ``s3://bucket/vectors``; made if it is not there.
            tenant: Whose collections.
            storage_options: Of LanceDB, for object storage.
        """
        super().__init__(tenant)
        self._database = lancedb.connect(f"{str(uri).rstrip('/')}/{tenant}", storage_options=storage_options)

    def _names(self) -> list[str]:
        names: list[str] = []
        token: str | None = None
        while True:
            page = self._database.list_tables(page_token=token, limit=_PAGE)
            names += page.tables
            token = page.page_token
            if not token:
                return names

    def _describe(self, name: str) -> CollectionInfo | None:
        try:
            schema = self._database.open_table(name).schema
        except ValueError:  # what LanceDB raises for a table that is not there, among other things
            if name in self._names():
                raise
            return None
        properties = (schema.metadata or {}).get(_PROPERTIES)
        if properties is None:  # somebody else's
            return None
        dimension, metric = schema.field("vector").type.list_size, json.loads(properties)["metric"]
        return CollectionInfo(name, dimension, metric, "f32", created=False)

    def _make(self, info: CollectionInfo) -> None:
        self._database.create_table(info.name, schema=_schema(info))

    def _remove(self, name: str) -> None:
        self._database.drop_table(name)

    def _count(self, name: str) -> int:
        return int(self._database.open_table(name).count_rows())

    def _write(self, info: CollectionInfo, rows: Rows) -> None:
        flat = pa.array(rows.vectors.reshape(-1))
        columns = [pa.array(rows.ids), pa.FixedSizeListArray.from_arrays(flat, info.dimension), pa.array(rows.payloads)]
        merge = self._database.open_table(info.name).merge_insert("id")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(pa.table(columns, schema=_schema(info)))

    def _erase(self, name: str, ids: Sequence[str]) -> None:
        self._database.open_table(name).delete(_one_of(ids))

    def _read(self, info: CollectionInfo, ids: Sequence[str], *, vectors: bool, payloads: bool) -> Rows:
        query = self._database.open_table(info.name).search().where(_one_of(ids))
        table = query.select(_columns(vectors=vectors, payloads=payloads)).limit(len(ids)).to_arrow()
        return _rows(table.combine_chunks(), info)

    def _scan(self, info: CollectionInfo, *, vectors: bool, payloads: bool) -> Iterator[Rows]:
        query = self._database.open_table(info.name).search()
        for batch in query.select(_columns(vectors=vectors, payloads=payloads)).to_batches():
            yield _rows(pa.Table.from_batches([batch]).combine_chunks(), info)

    def _candidates(self, info: CollectionInfo, query: npt.NDArray[np.float32], limit: int, *, payloads: bool) -> Rows:
        search: Any = self._database.open_table(info.name).search(query, vector_column_name="vector")
        wanted = [*_columns(vectors=True, payloads=payloads), "_distance"]
        return _rows(
            search.metric(info.metric).bypass_vector_index().select(wanted).limit(limit).to_arrow().combine_chunks(),
            info,
        )


def write_table(uri: str, table: Any) -> None:
    """Write an Arrow table as the next version of the one that is kept at an address; a version is there or not.

    Args:
        uri: A folder of the table's own, or its address in object storage.
        table: A `pyarrow.Table`.
    """
    lancedb.connect(uri).create_table(_TABLE, data=table, mode="overwrite")


def read_table(uri: str) -> Any:
    """The last version of the table that `write_table` keeps at an address, as a `pyarrow.Table`.

    Raises:
        FileNotFoundError: There is none.
    """
    database = lancedb.connect(uri)
    if _TABLE not in database.list_tables().tables:
        message = f"{uri} has no table"
        raise FileNotFoundError(message)
    return database.open_table(_TABLE).to_arrow()


def _schema(info: CollectionInfo) -> Any:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), info.dimension), nullable=False),
        pa.field("payload", pa.string(), nullable=False),
    ]
    return pa.schema(fields, metadata={_PROPERTIES: json.dumps({"metric": info.metric})})


def _columns(*, vectors: bool, payloads: bool) -> list[str]:
    return ["id", *["vector"] * vectors, *["payload"] * payloads]


def _one_of(ids: Sequence[str]) -> str:
    quoted = ("'" + one.replace("'", "''") + "'" for one in ids)
    return f"id IN ({', '.join(quoted)})"


def _rows(table: Any, info: CollectionInfo) -> Rows:
    ids = table.column("id").to_pylist()
    vectors: npt.NDArray[np.float32] = np.empty((len(ids), 0), np.float32)
    if "vector" in table.column_names and ids:
        values = pa.concat_arrays([chunk.flatten() for chunk in table.column("vector").chunks])
        vectors = values.to_numpy(zero_copy_only=False).reshape(len(ids), info.dimension)
    nearness: npt.NDArray[np.float32] = np.empty(0, np.float32)
    if "_distance" in table.column_names:
        distances = table.column("_distance").to_numpy()
        # LanceDB's distances: 1 - cosine, 1 - dot, the square of the Euclidean one.
        nearness = -distances if info.metric == "l2" else 1 - distances
    payloads = table.column("payload").to_pylist() if "payload" in table.column_names else [""] * len(ids)
    return Rows(ids, vectors, payloads, nearness)
