"""safetensors files of points, through numpy alone. What is in them stands in `medkg.vectors.files`."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from medkg.results import ExportBatch, SparseVectors
from medkg.vectors import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

    from medkg.results import CollectionInfo

__all__ = ["read", "write"]

_HEADER_LIMIT = 100_000_000


class _Ends:
    """Where each of many lists ends that lie one after the other; the first one begins at 0."""

    def __init__(self) -> None:
        self._parts = [np.zeros(1, dtype="<i8")]
        self._last = 0

    def add(self, lengths: npt.ArrayLike) -> None:
        """Lists that follow."""
        ends = self._last + np.cumsum(lengths, dtype="<i8")
        self._last = int(ends[-1]) if len(ends) else self._last
        self._parts.append(ends)

    def whole(self) -> npt.NDArray[np.int64]:
        """All of them."""
        return np.concatenate(self._parts)


def write(file: IO[bytes], info: CollectionInfo, batches: Iterable[ExportBatch]) -> int:
    """Write points; returns how many. The header comes first and needs all lengths; the rest waits in files beside."""
    ids, payloads, terms = _Ends(), _Ends(), _Ends()
    with ExitStack() as stack:
        folder = Path(file.name).parent
        parts: dict[str, IO[bytes]] = {
            key: stack.enter_context(tempfile.TemporaryFile(dir=folder))
            for key in ("vectors", "sparse_indices", "sparse_values", "ids", "payloads")
        }
        for batch in batches:
            parts["vectors"].write(np.ascontiguousarray(batch.vectors, dtype="<f4").tobytes())
            for key, texts, ends in (("ids", batch.ids, ids), ("payloads", batch.json_payloads, payloads)):
                encoded = [(text or "").encode() for text in texts]
                ends.add([len(text) for text in encoded])
                parts[key].write(b"".join(encoded))
            if batch.sparse is not None:
                terms.add(np.diff(batch.sparse.indptr))
                parts["sparse_indices"].write(batch.sparse.indices.astype("<i4").tobytes())
                parts["sparse_values"].write(batch.sparse.values.astype("<f4").tobytes())
        id_offsets, payload_offsets, indptr = ids.whole(), payloads.whole(), terms.whole()
        points = len(id_offsets) - 1
        # Eight bytes each first, then four, so that every tensor is aligned as its type wants it.
        tensors: list[tuple[str, str, list[int], npt.NDArray[np.int64] | IO[bytes]]] = [
            ("id_offsets", "I64", [points + 1], id_offsets),
            ("payload_offsets", "I64", [points + 1], payload_offsets),
            ("vectors", "F32", [points, info.dimension], parts["vectors"]),
            ("ids", "U8", [int(id_offsets[-1])], parts["ids"]),
            ("payloads", "U8", [int(payload_offsets[-1])], parts["payloads"]),
        ]
        if info.sparse_dimension:
            tensors[3:3] = [
                ("sparse_indices", "I32", [int(indptr[-1])], parts["sparse_indices"]),
                ("sparse_values", "F32", [int(indptr[-1])], parts["sparse_values"]),
            ]
            tensors.insert(2, ("sparse_indptr", "I64", [points + 1], indptr))
        header: dict[str, Any] = {"__metadata__": layout.metadata(info)}
        place = 0
        for key, dtype, shape, data in tensors:
            size = data.nbytes if isinstance(data, np.ndarray) else data.tell()
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
            place += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, _, data in tensors:
            if isinstance(data, np.ndarray):
                file.write(data.tobytes())
                continue
            data.seek(0)
            shutil.copyfileobj(data, file, 1024 * 1024)
    return points


@contextmanager
def read(path: Path, rows: int) -> Iterator[tuple[CollectionInfo, Iterator[ExportBatch]]]:
    """The collection, and its points in batches of so many rows."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0  # noqa: PLR2004 - a u64
        if not 0 < length < _HEADER_LIMIT:
            raise layout.wrong("path", "is no safetensors file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise layout.wrong("path", f"has a header that cannot be read ({error})") from error
    info = layout.info(header.get("__metadata__", {}))
    yield info, _batches(_Mapped(path, header, 8 + length), info, rows)


class _Mapped:
    """The tensors of a file, mapped into memory."""

    def __init__(self, path: Path, header: dict[str, Any], data: int) -> None:
        self._path, self._header, self._data = path, header, data

    def tensor(self, key: str, dtype: str) -> npt.NDArray[Any]:
        """All its elements, one after the other."""
        if key not in self._header:
            raise layout.wrong("path", f"has no tensor {key}")
        begin, end = self._header[key]["data_offsets"]
        size = self._path.stat().st_size - self._data
        if not 0 <= begin <= end <= size:
            raise layout.wrong("path", f"is cut off: {key} ends at {end}, and there are {size} bytes")
        count = (end - begin) // np.dtype(dtype).itemsize
        if count == 0:
            return np.zeros(0, dtype=dtype)
        return np.memmap(self._path, dtype=dtype, mode="r", offset=self._data + begin, shape=(count,))


def _batches(mapped: _Mapped, info: CollectionInfo, rows: int) -> Iterator[ExportBatch]:
    id_offsets, payload_offsets = mapped.tensor("id_offsets", "<i8"), mapped.tensor("payload_offsets", "<i8")
    vectors, ids, payloads = (mapped.tensor(*key) for key in (("vectors", "<f4"), ("ids", "u1"), ("payloads", "u1")))
    points, width = len(id_offsets) - 1, info.dimension
    fits = points >= 0 and len(payload_offsets) == points + 1 and len(vectors) == points * width
    sparse: SparseVectors | None = None
    if info.sparse_dimension:
        keys = (("sparse_indptr", "<i8"), ("sparse_indices", "<i4"), ("sparse_values", "<f4"))
        sparse = SparseVectors(*(mapped.tensor(*key) for key in keys))
        fits = fits and len(sparse.indptr) == points + 1
        fits = fits and int(sparse.indptr[-1]) == len(sparse.indices) == len(sparse.values)
    if not fits:
        raise layout.wrong("path", "has tensors that do not fit together")

    def texts(data: npt.NDArray[Any], offsets: npt.NDArray[Any], begin: int, end: int) -> list[str]:
        return [bytes(data[offsets[row] : offsets[row + 1]]).decode() for row in range(begin, end)]

    for begin in range(0, points, rows):
        end = min(points, begin + rows)
        yield ExportBatch(
            texts(ids, id_offsets, begin, end),
            np.array(vectors[begin * width : end * width], dtype=np.float32).reshape(end - begin, width),
            [text or None for text in texts(payloads, payload_offsets, begin, end)],
            None if sparse is None else _part(sparse, begin, end),
        )


def _part(whole: SparseVectors, begin: int, end: int) -> SparseVectors:
    first, last = whole.indptr[begin], whole.indptr[end]
    return SparseVectors(
        np.array(whole.indptr[begin : end + 1] - first, dtype=np.int64),
        np.array(whole.indices[first:last], dtype=np.int32),
        np.array(whole.values[first:last], dtype=np.float32),
    )
