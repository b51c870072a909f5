"""Many files at once: load, chunk and check each, and let a bad one fail alone."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from medkg.chunking.coverage import uncovered_items
from medkg.chunking.errors import DocumentError, MissingExtraError
from medkg.chunking.loading import MAX_FILE_BYTES, discover, load_document
from medkg.chunking.report import ChunkedDocument, ChunkingReport, DocumentFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from medkg.chunking.chunk import Chunk
    from medkg.chunking.chunker import Chunker

_log = logging.getLogger(__name__)


def chunk_documents(
    paths: Iterable[Path | str],
    chunker: Chunker,
    *,
    docling_serve: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Callable[[int, int, Path], None] | None = None,
) -> ChunkingReport:
    """Load and chunk files; a document that fails is listed and stops none of the others.

    Args:
        paths: files and folders; folders are searched as `discover` does.
        chunker: cuts every document.
        docling_serve: address of a docling-serve for PDF files.
        max_file_bytes: larger files fail.
        progress: called after each file with files done, files in all, and the file.

    Raises:
        DoclingServeUnavailableError: the docling-serve does not answer, which is no fault of a document.
        MissingExtraError: packages of `medkg[chunking]` are missing: every document would fail the same way.
    """
    files = discover(paths)
    report = ChunkingReport()
    seen: dict[str, Path] = {}
    for done, path in enumerate(files, start=1):
        try:
            document, chunks = _chunk_one(path, chunker, docling_serve, max_file_bytes, seen)
        except DocumentError as error:
            _log.warning("document failed: %s", error)
            report.failures.append(DocumentFailure(path, error))
        else:
            seen[document.document_id] = path
            report.documents.append(document)
            report.chunks.extend(chunks)
        if progress is not None:
            progress(done, len(files), path)
    return report


def _chunk_one(
    path: Path, chunker: Chunker, docling_serve: str | None, max_file_bytes: int, seen: dict[str, Path]
) -> tuple[ChunkedDocument, list[Chunk]]:
    started = time.perf_counter()
    source = load_document(path, docling_serve=docling_serve, max_file_bytes=max_file_bytes)
    if source.document_id in seen:
        # Equal ids would overwrite each other in any store.
        problem = f"has the same name as {seen[source.document_id]}, and a document is known by its name"
        raise DocumentError(path, problem, "Rename one of the two files")
    try:
        chunks = chunker.chunk(source)
        uncovered = uncovered_items(source.document, chunks)
    except (DocumentError, MissingExtraError):
        raise
    except Exception as error:  # docling-core meets documents nobody has tried; the others must go on
        problem = f"chunking it failed with {type(error).__name__}: {error}"
        raise DocumentError(path, problem, "Please report it with the file") from error
    if uncovered:
        _log.warning("%s: text of %d items is not whole in its chunks: %s", path, len(uncovered), uncovered[:5])
    return (
        ChunkedDocument(
            document_id=source.document_id,
            title=source.title,
            source=source.source,
            path=str(path),
            media_type=source.media_type,
            sha256=source.sha256,
            pages=len(source.document.pages),
            chunk_count=len(chunks),
            token_count=sum(chunk.token_count for chunk in chunks),
            uncovered_items=uncovered,
            seconds=time.perf_counter() - started,
        ),
        chunks,
    )
