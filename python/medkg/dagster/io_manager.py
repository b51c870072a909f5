"""`TableIOManager`: the assets' outputs as Parquet, Arrow or Lance, on any path that fsspec knows.

A file per asset and partition: `BASE/embeddings.parquet`, `BASE/embeddings/007.parquet`, and with tenants as a
dimension `BASE/embeddings/007/clinic-a.parquet`. It is written whole or not at all: a run that is killed half-way
leaves what the run before stored. Anything reads it: DuckDB, pandas, Polars, Spark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field
from upath import UPath

from medkg.dagster import table_files, tables
from medkg.dagster.whole_files import write_whole

if TYPE_CHECKING:
    from medkg.dagster.table_files import TableFormat

FOLDER = "medkg"
"""Folder in the Dagster instance's own storage, where no other place is named."""


class TableIOManager(dg.ConfigurableIOManagerFactory[Any]):
    """Stores what medkg's assets return, and any `pyarrow.Table`, as one table per asset and partition."""

    base_path: str | None = Field(
        default=None,
        description="Folder or address (`s3://bucket/medkg`, `gs://...`); by default in the Dagster instance's storage."
        " Credentials are fsspec's own: environment, instance role, ~/.config/fsspec.",
    )
    format: Literal["parquet", "arrow", "lance"] = Field(
        default="parquet", description="`parquet`, `arrow` (IPC), or `lance`, which needs medkg[lance]."
    )

    def create_io_manager(self, context: dg.InitResourceContext) -> dg.UPathIOManager:
        """The I/O manager of one step."""
        base = storage_path(self.base_path, context.instance)
        return _LanceTables(base) if self.format == "lance" else _FileTables(base, self.format)


def storage_path(named: str | None, instance: dg.DagsterInstance | None) -> UPath:
    """The folder that is named, or else one in the instance's storage.

    Raises:
        dg.DagsterInvariantViolationError: Neither is there.
    """
    if named is not None:
        return UPath(named)
    if instance is None:
        msg = "no folder is named, and there is no Dagster instance to keep tables in: set base_path"
        raise dg.DagsterInvariantViolationError(msg)
    return UPath(instance.storage_directory()) / FOLDER


class _Tables(dg.UPathIOManager):
    """Where tables are, and what is told of them."""

    def make_directory(self, path: UPath) -> None:
        """Nothing: a folder is made with the file in it, and object stores have none."""

    def make_safe_partition_path(self, base_path: UPath, partition: str) -> UPath:
        """A partition's path, which no key can lead out of its asset's folder."""
        parts = ("%2E%2E" if part == ".." else part for part in partition.split("/"))
        return super().make_safe_partition_path(base_path, "/".join(parts))


class _FileTables(_Tables):
    """A file per table."""

    def __init__(self, base_path: UPath, form: TableFormat) -> None:
        super().__init__(base_path)
        self.extension = f".{form}"
        self._format: TableFormat = form

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Writes a table."""
        write_whole(path, table_files.write(tables.to_table(obj, run_id=context.run_id), self._format))

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Reads one."""
        del context
        return tables.from_table(table_files.read(path.read_bytes(), self._format))


class _LanceTables(_Tables):
    """A Lance dataset per table; each write is one commit, and the versions before stay until they are cleaned up.

    Object storage is opened with LanceDB's own environment variables.
    """

    extension = ".lance"

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Writes a version."""
        from medkg.vectors.lance import write_table  # noqa: PLC0415 - an extra

        write_table(str(path), tables.to_table(obj, run_id=context.run_id))

    def load_from_path(self, context: dg.InputContext, path: UPath) -> Any:
        """Reads the last one."""
        from medkg.vectors.lance import read_table  # noqa: PLC0415 - an extra

        del context
        return tables.from_table(read_table(str(path)))
