"""Vectors that are there already, by what they were made from: nothing is embedded twice.

A vector is known by the SHA-256 of its text and by how it was made: the weights' digest and the prompt before the text
(one that would have to be cut is refused). It is stored as it comes, a group at a time, each group a file that is there
whole or not at all: a step that is killed half-way goes on where it was. All partitions and runs of a tenant share what
is there; no tenant sees what another one has.

    BASE/TENANT/DIGEST-RECIPE/part-*.parquet        columns content_sha256, vector, embedded_by

Other weights have another folder, so that a change of the model embeds everything anew and finds nothing stale. Folders
of models that are gone can be deleted by hand, at any time.
"""

from __future__ import annotations

import importlib
import logging
import uuid
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from medkg.dagster import table_files
from medkg.dagster.whole_files import write_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import numpy.typing as npt
    from upath import UPath

_MANY: Final = 64
"""Files that are put together into one: each is opened once by every step that looks for vectors."""
_LARGE_BYTES: Final = 64 * 1024 * 1024
"""Files of this size stay as they are."""
_FORMAT: Final = "parquet"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How texts become vectors; equal texts of equal recipes have equal vectors."""

    model_digest: str
    """SHA-256 of the weights, in hexadecimal."""
    prompt: str
    """What the model is given before each text."""

    @property
    def folder(self) -> str:
        """Name of the folder of its vectors."""
        return f"{self.model_digest[:32]}-{sha256(self.prompt.encode()).hexdigest()[:16]}"


class Known(NamedTuple):
    """A vector that is there."""

    vector: npt.NDArray[np.float32]
    """Shape (dimension,), float32."""
    embedded_by: str
    """Id of the run that computed it."""


def content_sha256(text: str) -> str:
    """What a text is known by: the SHA-256 of its UTF-8, in hexadecimal."""
    return sha256(text.encode()).hexdigest()


class EmbeddingStore:
    """The vectors of one tenant and one recipe."""

    def __init__(self, base: UPath, *, tenant: str, recipe: Recipe) -> None:
        """Opens a store; nothing is read, and no folder is made.

        Args:
            base: Folder or address of all tenants' vectors.
            tenant: Whose vectors.
            recipe: How they are made.
        """
        self._folder = base / tenant / recipe.folder

    def find(self, wanted: Collection[str]) -> dict[str, Known]:
        """The vectors that are there, by the SHA-256 of their texts."""
        try:
            return self._find(wanted)
        except FileNotFoundError:  # another process has put files together since they were listed
            return self.find(wanted)

    def add(self, digests: Sequence[str], vectors: npt.NDArray[np.float32], *, run_id: str) -> None:
        """Stores vectors; they are on disk when this returns.

        Args:
            digests: SHA-256 of each text.
            vectors: Shape (texts, dimension), float32.
            run_id: The run that computed them.
        """
        table = _table(digests, vectors, [run_id] * len(digests))
        write_whole(self._folder / f"part-{uuid.uuid4().hex}.{_FORMAT}", table_files.write(table, _FORMAT))

    def tidy(self) -> None:
        """Puts many small files together into one. Others may read and write meanwhile; nothing is missing ever."""
        try:
            parts = [part for part in self._parts() if part.stat().st_size < _LARGE_BYTES]
            if len(parts) < _MANY:
                return
            merged = pa.concat_tables([_read(part) for part in parts])
        except FileNotFoundError:  # somebody else is at it
            return
        _, first = np.unique(merged.column("content_sha256").to_pylist(), return_index=True)
        merged = merged.take(first)
        write_whole(self._folder / f"part-{uuid.uuid4().hex}.{_FORMAT}", table_files.write(merged, _FORMAT))
        for part in parts:
            part.unlink(missing_ok=True)

    def _find(self, wanted: Collection[str]) -> dict[str, Known]:
        # Its functions are made when it is imported: no checker knows them.
        pc: Any = importlib.import_module("pyarrow.compute")
        found: dict[str, Known] = {}
        names = pa.array(wanted, pa.string())
        for part in self._parts():
            try:
                table = _read(part)
            except pa.ArrowInvalid as error:
                _log.warning("%s cannot be read (%s); its texts are embedded again. Delete it", part, error)
                continue
            table = table.filter(pc.is_in(table.column("content_sha256"), value_set=names))
            digests, runs = (table.column(name).to_pylist() for name in ("content_sha256", "embedded_by"))
            vectors = table_files.vectors_of(table.column("vector"))
            found.update(zip(digests, map(Known, vectors, runs), strict=True))
        return found

    def _parts(self) -> list[UPath]:
        return sorted(self._folder.glob(f"part-*.{_FORMAT}"))


def _read(part: UPath) -> Any:
    return table_files.read(part.read_bytes(), _FORMAT)


def _table(digests: Sequence[str], vectors: npt.NDArray[np.float32], runs: Sequence[str]) -> Any:
    columns = {
        "content_sha256": pa.array(digests, pa.string()),
        "vector": table_files.rows_of(vectors),
        "embedded_by": pa.array(runs, pa.string()),
    }
    return pa.table(columns)
