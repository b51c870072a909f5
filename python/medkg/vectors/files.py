"""Collections as files: Arrow IPC, Parquet and safetensors, written and read in bounded memory.

What it is: `export_collection` streams a collection of a gpu-server, as it is at one moment, into a file;
`import_collection` writes such a file into a collection of any home of `medkg.vectors`. The ending of the path says
which format it is: ``.arrow``, ``.parquet`` (both need ``pip install 'medkg[arrow]'``) or ``.safetensors``, which needs
nothing.

Arrow and Parquet: one row per point, with the columns ``id`` (string), ``vector`` (list of ``dimension`` float32),
``payload`` (string: JSON, null for none) and, in a collection with sparse vectors, ``sparse_indices`` (list of int32)
and ``sparse_values`` (list of float32); name, metric, storage and sparse dimension are in the schema's metadata, under
keys that begin with ``medkg.``.

safetensors holds tensors only, so texts are in it as bytes: ``vectors`` (F32 [points, dimension]), ``ids`` (U8, all ids
as UTF-8 one after the other), ``id_offsets`` (I64 [points + 1]: id i is ``ids[id_offsets[i]:id_offsets[i + 1]]``), and
``payloads`` with ``payload_offsets`` likewise (nothing is no payload); in a collection with sparse vectors also
``sparse_indptr`` (I64 [points + 1]), ``sparse_indices`` (I32) and ``sparse_values`` (F32), compressed sparse rows. The
same metadata is in ``__metadata__``.

A file is written under another name and renamed when it is whole and on disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from medkg.errors import ConfigError
from medkg.results import CollectionInfo, ExportBatch, SparseVectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from medkg.vectors.interface import Metric, VectorStore

__all__ = ["export_collection", "import_collection"]

_ROWS = 8_192
_HEADER_LIMIT = 100_000_000
_DTYPES = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "U8": "u1"}


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
    write = _format(target, {".arrow": _write_arrow, ".parquet": _write_parquet, ".safetensors": _write_safetensors})
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
        exist_ok: Accept a collection of the same dimension and metric, and add to it.

    Raises:
        AlreadyExistsError: It is there, and ``exist_ok`` is False or it differs.
        ConfigError: The file is not one that :func:`export_collection` wrote.
        ServiceError: The file has sparse vectors, and the home keeps none.
        ModuleNotFoundError: The extra is not installed; the message names it.
    """
    source = Path(path)
    read = _format(source, {".arrow": _read_arrow, ".parquet": _read_parquet, ".safetensors": _read_safetensors})
    points = 0
    with read(source) as (info, batches):
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
        raise _wrong("path", problem) from None


def _wrong(field: str, problem: str) -> ConfigError:
    return ConfigError(f"{field} {problem}", field_violations=[(field, problem)])


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


def _metadata(info: CollectionInfo) -> dict[str, str]:
    return {
        "medkg.format": "1",
        "medkg.name": info.name,
        "medkg.dimension": str(info.dimension),
        "medkg.metric": info.metric,
        "medkg.storage": info.storage,
        "medkg.sparse_dimension": str(info.sparse_dimension),
    }


def _info(metadata: dict[str, str]) -> CollectionInfo:
    if metadata.get("medkg.format") != "1":
        raise _wrong("path", "is no file that export_collection of this version wrote")
    metric, storage = metadata["medkg.metric"], metadata["medkg.storage"]
    if metric not in {"cosine", "dot", "l2"}:
        raise _wrong("path", f"has the metric {metric!r}")
    kept: Any = storage
    return CollectionInfo(
        metadata["medkg.name"],
        int(metadata["medkg.dimension"]),
        cast("Metric", metric),
        kept,
        created=False,
        sparse_dimension=int(metadata.get("medkg.sparse_dimension", "0")),
    )


def _arrow() -> Any:
    from medkg.vectors.arrow import load  # noqa: PLC0415 - pyarrow is an extra

    return load()


def _write_arrow(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    return int(_arrow().write_ipc(file, info, _metadata(info), batches))


def _write_parquet(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    return int(_arrow().write_parquet(file, info, _metadata(info), batches))


@contextmanager
def _read_arrow(path: Path) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    with _arrow().read_ipc(path) as (metadata, batches):
        yield _info(metadata), batches


@contextmanager
def _read_parquet(path: Path) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    with _arrow().read_parquet(path, _ROWS) as (metadata, batches):
        yield _info(metadata), batches


def _write_safetensors(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    """The header comes first and needs all lengths, so what is streamed waits in files beside."""
    points = 0
    with ExitStack() as stack:

        def spool(key: str, dtype: str, *row: int) -> _Spool:
            waits = stack.enter_context(tempfile.TemporaryFile(dir=Path(file.name).parent))
            return _Spool(key, dtype, row, waits)

        # Eight bytes each first, so that every tensor is aligned as its type wants it.
        id_ends, payload_ends = spool("id_offsets", "I64"), spool("payload_offsets", "I64")
        terms = [spool("sparse_indptr", "I64"), spool("sparse_indices", "I32"), spool("sparse_values", "F32")]
        vectors = spool("vectors", "F32", info.dimension)
        ids, payloads = spool("ids", "U8"), spool("payloads", "U8")
        spools = [id_ends, payload_ends, *(terms if info.sparse_dimension else []), vectors, ids, payloads]
        for ends in (id_ends, payload_ends, terms[0]):
            ends.add(np.zeros(1))
        for batch in batches:
            points += len(batch.ids)
            vectors.add(batch.vectors)
            for texts, ends, to in ((batch.ids, id_ends, ids), (batch.json_payloads, payload_ends, payloads)):
                encoded = [(text or "").encode() for text in texts]
                ends.add(to.elements + np.cumsum([len(text) for text in encoded], dtype=np.int64))
                to.add(np.frombuffer(b"".join(encoded), np.uint8))
            if batch.sparse is not None:
                terms[0].add(terms[1].elements + batch.sparse.indptr[1:])
                terms[1].add(batch.sparse.indices)
                terms[2].add(batch.sparse.values)
        header: dict[str, Any] = {"__metadata__": _metadata(info)}
        place = 0
        for one in spools:
            size = one.waits.tell()
            shape = [one.elements // math.prod(one.row), *one.row]
            header[one.key] = {"dtype": one.dtype, "shape": shape, "data_offsets": [place, place + size]}
            place += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for one in spools:
            one.waits.seek(0)
            shutil.copyfileobj(one.waits, file, 1024 * 1024)
    return points


class _Spool:
    """A tensor that is written piece by piece."""

    def __init__(self, key: str, dtype: str, row: tuple[int, ...], waits: IO[bytes]) -> None:
        self.key, self.dtype, self.row, self.waits = key, dtype, row, waits
        self.elements = 0

    def add(self, piece: npt.NDArray[Any]) -> None:
        self.elements += piece.size
        self.waits.write(np.ascontiguousarray(piece, dtype=_DTYPES[self.dtype]).tobytes())


@contextmanager
def _read_safetensors(path: Path) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0  # noqa: PLR2004 - a u64
        if not 0 < length < _HEADER_LIMIT:
            raise _wrong("path", "is no safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise _wrong("path", f"has a header that cannot be read ({error})") from error
    info = _info(header.get("__metadata__", {}))
    yield info, _safetensors_batches(path, header, 8 + length, info.dimension)


def _safetensors_batches(path: Path, header: dict[str, Any], data: int, dimension: int) -> Iterator[ExportBatch]:
    size = path.stat().st_size - data

    def mapped(key: str) -> npt.NDArray[Any]:
        begin, end = header[key]["data_offsets"]
        if not 0 <= begin <= end <= size:
            raise _wrong("path", f"is cut off: {key} ends at {end}, and there are {size} bytes")
        dtype = _DTYPES[header[key]["dtype"]]
        count = (end - begin) // np.dtype(dtype).itemsize
        if count == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=data + begin, shape=(count,))

    id_offsets, payload_offsets = mapped("id_offsets"), mapped("payload_offsets")
    vectors, ids, payloads = mapped("vectors"), mapped("ids"), mapped("payloads")
    points = len(id_offsets) - 1
    terms = tuple(mapped(f"sparse_{part}") for part in ("indptr", "indices", "values") if "sparse_indptr" in header)
    fits = len(payload_offsets) == points + 1 and len(vectors) == points * dimension
    if not fits or (terms and len(terms[0]) != points + 1):
        raise _wrong("path", "has tensors that do not fit together")

    def texts(data: npt.NDArray[Any], offsets: npt.NDArray[Any], begin: int, end: int) -> list[str]:
        return [bytes(data[offsets[row] : offsets[row + 1]]).decode() for row in range(begin, end)]

    for begin in range(0, points, _ROWS):
        end = min(points, begin + _ROWS)
        rows = np.array(vectors[begin * dimension : end * dimension], dtype=np.float32).reshape(end - begin, dimension)
        yield ExportBatch(
            texts(ids, id_offsets, begin, end),
            rows,
            [text or None for text in texts(payloads, payload_offsets, begin, end)],
            _sparse_rows(*terms, begin=begin, end=end) if terms else None,
        )


def _sparse_rows(
    indptr: npt.NDArray[Any], indices: npt.NDArray[Any], values: npt.NDArray[Any], *, begin: int, end: int
) -> SparseVectors:
    ends = np.array(indptr[begin : end + 1])
    terms = slice(int(ends[0]), int(ends[-1]))
    return SparseVectors(ends - ends[0], np.array(indices[terms]), np.array(values[terms]))
