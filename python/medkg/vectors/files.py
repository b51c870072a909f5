"""Collections as files: Arrow IPC, Parquet and safetensors, written and read in bounded memory.

What it is: `export_collection` streams a collection of a gpu-server, as it is at one moment, into a file;
`import_collection` writes such a file into a collection of any home of `medkg.vectors`. The ending of the path says
which format it is: ``.arrow``, ``.parquet`` (both need ``pip install 'medkg[arrow]'``) or ``.safetensors``, which needs
nothing.

Arrow and Parquet: one row per point, with the columns ``id`` (string), ``vector`` (list of ``dimension`` float32) and
``payload`` (string: JSON, null for none); name, metric and storage are in the schema's metadata, under keys that begin
with ``medkg.``.

safetensors holds tensors only, so texts are in it as bytes: ``vectors`` (F32 [points, dimension]), ``ids`` (U8, all ids
as UTF-8 one after the other), ``id_offsets`` (I64 [points + 1]: id i is ``ids[id_offsets[i]:id_offsets[i + 1]]``), and
``payloads`` with ``payload_offsets`` likewise (nothing is no payload). The same metadata is in ``__metadata__``.

A collection with sparse vectors has them as compressed sparse rows: in Arrow and Parquet in the columns
``sparse_indices`` (list of int32) and ``sparse_values`` (list of float32), in safetensors in ``sparse_indptr`` (I64
[points + 1]), ``sparse_indices`` (I32) and ``sparse_values`` (F32). No terms is no sparse vector. Indices are signed,
as numpy and scipy have them: the largest one is below 2**31.

A file is written under another name and renamed when it is whole and on disk.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from medkg.vectors import layout, tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medkg.results import CollectionInfo, ExportBatch
    from medkg.vectors.interface import VectorStore

__all__ = ["export_collection", "import_collection"]

_ROWS = 8_192


class _Source(Protocol):
    """What can be read whole: a `VectorClient`."""

    def export(self, name: str, *, tenant: str | None = None) -> Any:
        """Begin to read."""


def export_collection(source: _Source, name: str, path: str | os.PathLike[str], *, tenant: str | None = None) -> int:
    """Write all points of a gpu-server's collection into a file; returns how many.

    The file has the collection as it was at one moment, whatever is written meanwhile. The order of points is not
    promised.

    Args:
        source: A :class:`medkg.VectorClient`.
        name: The collection.
        path: The file; ``.arrow``, ``.parquet`` or ``.safetensors``. One that is there is replaced at the end.
        tenant: Whose collection; None means the client's tenant.

    Raises:
        CollectionNotFoundError: The tenant has no collection of that name.
        ConfigError: The ending of the path is another one.
        ModuleNotFoundError: The extra is not installed; the message names it.
    """
    target = Path(path)
    write = _format(target, {".arrow": _write_arrow, ".parquet": _write_parquet, ".safetensors": tensors.write})
    options = {} if tenant is None else {"tenant": tenant}
    with source.export(name, **options) as export, _replacing(target) as file:
        return int(write(file, export.collection, export))


def import_collection(
    store: VectorStore, path: str | os.PathLike[str], name: str | None = None, *, exist_ok: bool = False
) -> int:
    """Write the points of a file into a collection, which is made; returns how many.

    Args:
        store: Any home of :mod:`medkg.vectors`.
        path: What :func:`export_collection` wrote.
        name: The collection; None means the name in the file.
        exist_ok: Accept a collection of the same dimensions and metric, and add to it.

    Raises:
        AlreadyExistsError: It is there, and ``exist_ok`` is False or it differs.
        ConfigError: The file is not one that :func:`export_collection` wrote.
        ServiceError: The file has sparse vectors, and the home keeps none (``UNIMPLEMENTED``); nothing is made then.
        ModuleNotFoundError: The extra is not installed; the message names it.
    """
    source = Path(path)
    read = _format(source, {".arrow": _read_arrow, ".parquet": _read_parquet, ".safetensors": tensors.read})
    points = 0
    with read(source, _ROWS) as (info, batches):
        wanted = name or info.name
        store.create(wanted, info.dimension, info.metric, sparse_dimension=info.sparse_dimension, exist_ok=exist_ok)
        for batch in batches:
            store.upsert(wanted, batch.ids, batch.vectors, batch.payloads, sparse=batch.sparse)
            points += len(batch.ids)
    return points


def _format(path: Path, known: dict[str, Any]) -> Any:
    try:
        return known[path.suffix]
    except KeyError:
        problem = f"ends in {path.suffix!r}; give a path that ends in {', '.join(known)}"
        raise layout.wrong("path", problem) from None


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when all of it is on disk, or goes."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        os.close(descriptor)
        with Path(name).open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _arrow() -> Any:
    from medkg.vectors.arrow import load  # noqa: PLC0415 - pyarrow is an extra

    return load()


def _write_arrow(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    return int(_arrow().write_ipc(file, info, batches))


def _write_parquet(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    return int(_arrow().write_parquet(file, info, batches))


@contextmanager
def _read_arrow(path: Path, _rows: int) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    with _arrow().read_ipc(path) as read:
        yield read


@contextmanager
def _read_parquet(path: Path, rows: int) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    with _arrow().read_parquet(path, rows) as read:
        yield read
