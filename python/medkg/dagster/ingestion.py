"""From files to chunks: reading and chunking; knows documents, and nothing of Dagster.

A document that fails is set aside and its siblings go on. A docling-serve that is away goes through: it is no fault of
a document, and the step is retried.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from upath import UPath

from medkg.dagster.outputs import DocumentRecord, SetAside
from medkg.dagster.whole_files import is_local
from medkg.errors import ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medkg.chunking import Chunk, Chunker, ChunkingQuality, SourceDocument

    Progress = Callable[[int, int], None]
    """Called with what is done and what there is to do."""

_FORMATS: Final = {
    "application/json": "Docling JSON",
    "application/pdf": "PDF",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "DOCX",
    "application/xml": "JATS",
    "text/html": "HTML",
    "text/markdown": "Markdown",
}


def read_documents(
    paths: Sequence[str], *, wanted: Callable[[str, str], bool] = lambda _id, _name: True, progress: Progress
) -> tuple[list[DocumentRecord], list[SetAside]]:
    """Lists the documents of files and folders; each file is read, and none is parsed.

    Args:
        paths: Files, or folders that are searched.
        wanted: Whether the document of that id and file name is meant; others are not read.
        progress: Called after each file.

    Raises:
        medkg.chunking.MissingExtraError: The packages of `medkg[chunking]` are missing.
    """
    from medkg.chunking import MissingExtraError, discover, document_id_of, identify  # noqa: PLC0415 - Docling is heavy

    files = [path for path in discover(paths) if wanted(document_id_of(path), path.name)]
    documents: list[DocumentRecord] = []
    failed: list[SetAside] = []
    seen: dict[str, str] = {}
    for done, path in enumerate(files, start=1):
        try:
            found = identify(path)
        except MissingExtraError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with a file, the others are read
            failed.append(SetAside.of(str(path), error))
        else:
            twin = seen.setdefault(found.document_id, str(path))
            if twin == str(path):
                documents.append(
                    DocumentRecord(
                        found.document_id, found.source, str(path), found.media_type, found.sha256, found.bytes
                    )
                )
            else:
                failed.append(SetAside(str(path), f"has the same name as {twin}; rename one of the two"))
        progress(done, len(files))
    return documents, failed


def chunk_documents(
    documents: Sequence[DocumentRecord],
    chunker: Chunker,
    *,
    docling_serve: str | None = None,
    quality: ChunkingQuality,
    progress: Progress,
) -> tuple[list[Chunk], list[SetAside]]:
    """Parses, chunks and checks documents, in their order and one at a time: no more than one is in memory.

    Args:
        documents: The documents; one that cannot be parsed, or has no text, is set aside.
        chunker: Cuts them.
        docling_serve: Address of a docling-serve that converts PDF; without one a PDF is set aside.
        quality: Counts what was made, and what the check of it found.
        progress: Called after each document.

    Raises:
        medkg.chunking.DoclingServeUnavailableError: The docling-serve does not answer; no PDF is set aside for that.
        medkg.chunking.MissingExtraError: The packages of `medkg[chunking]` are missing.
    """
    from medkg.chunking import MissingExtraError, chunk_loaded  # noqa: PLC0415 - Docling is heavy

    chunks: list[Chunk] = []
    failed: list[SetAside] = []
    for done, document in enumerate(documents, start=1):
        started = time.perf_counter()
        try:
            source = _load(document, docling_serve)
            made = chunk_loaded(source, chunker, loading=time.perf_counter() - started)
        except (MissingExtraError, ServiceUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 -- one odd document must not cost the others
            failed.append(SetAside.of(document.document_id, error))
            quality.add_failure()
        else:
            chunks.extend(made.chunks)
            quality.add(made.document, made.chunks)
            if not made.chunks:
                failed.append(SetAside(document.document_id, "has no text to chunk"))
        progress(done, len(documents))
    return chunks, failed


def format_of(document: DocumentRecord) -> str:
    """The document's format, as people call it."""
    return _FORMATS.get(document.media_type, document.media_type)


def _load(document: DocumentRecord, docling_serve: str | None) -> SourceDocument:
    """The parsed document, under the name it was listed by: what was converted is read from a file of another one."""
    from medkg.chunking import load_document  # noqa: PLC0415 - Docling is heavy

    with _as_file(document.path) as path:
        loaded = load_document(path, docling_serve=docling_serve)
    if loaded.source == document.source:
        return loaded
    title = document.source if loaded.title == Path(document.path).stem else loaded.title
    return replace(
        loaded, document_id=document.document_id, source=document.source, sha256=document.sha256, title=title
    )


@contextmanager
def _as_file(path: str) -> Iterator[Path]:
    """The file itself, or a copy of what is in object storage."""
    place = UPath(path)
    if is_local(place):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, place.name)
        copy.write_bytes(place.read_bytes())
        yield copy
