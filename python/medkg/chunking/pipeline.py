"""Many files at once: load, chunk and check each, and let a bad one fail alone.

`iter_chunks` gives one document after the other and keeps none, so it takes any number of them in the same memory.
`chunk_documents` gathers what it gives.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from medkg.chunking.coverage import uncovered_items
from medkg.chunking.errors import DocumentError, MissingExtraError
from medkg.chunking.loading import MAX_FILE_BYTES, discover, load_document
from medkg.chunking.parallel import map_in_order
from medkg.chunking.quality import ChunkingQuality
from medkg.chunking.report import ChunkedDocument, ChunkingReport, DocumentChunks, DocumentFailure
from medkg.chunking.validation import check_chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from medkg.chunking.chunker import Chunker
    from medkg.chunking.loading import SourceDocument

_log = logging.getLogger(__name__)


def iter_chunks(
    paths: Iterable[Path | str],
    chunker: Chunker,
    *,
    docling_serve: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    workers: int = 0,
    progress: Callable[[int, int, Path], None] | None = None,
) -> Iterator[DocumentChunks | DocumentFailure]:
    """Load, chunk and check files one after the other; a document that fails stops none of the others.

    Args:
        paths: files and folders; folders are searched as `discover` does.
        chunker: cuts every document.
        docling_serve: address of a docling-serve for PDF files.
        max_file_bytes: larger files fail.
        workers: processes that do it; 0 does it in this one. Each takes some seconds to start and a few hundred
            megabytes. Closing the iterator ends them.
        progress: called before each result is given, with files done, files in all, and the file.

    Raises:
        DoclingServeUnavailableError: the docling-serve does not answer, which is no fault of a document.
        MissingExtraError: packages of `medkg[chunking]` are missing: every document would fail the same way.
        ValueError: `workers` is negative.
    """
    if workers < 0:
        message = f"workers: {workers} is negative; use 0 for this process, or how many processes are to work"
        raise ValueError(message)
    files = discover(paths)
    work = partial(_chunk_one, chunker=chunker, docling_serve=docling_serve, max_file_bytes=max_file_bytes)
    outcomes = map_in_order(work, files, workers=workers, lost=_lost) if workers else map(work, files)
    seen: dict[str, Path] = {}
    for done, (path, outcome) in enumerate(zip(files, outcomes, strict=True), start=1):
        told = _first_of_its_name(path, outcome, seen)
        if isinstance(told, DocumentFailure):
            _log.warning("document failed: %s", told.error)
        else:
            for problem in told.document.problems:
                _log.warning("%s: %s", path, problem)
        if progress is not None:
            progress(done, len(files), path)
        yield told


def chunk_documents(
    paths: Iterable[Path | str],
    chunker: Chunker,
    *,
    docling_serve: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    workers: int = 0,
    progress: Callable[[int, int, Path], None] | None = None,
) -> ChunkingReport:
    """Gather what `iter_chunks` gives; arguments and errors are those of it."""
    report = ChunkingReport(quality=ChunkingQuality(chunker.max_tokens))
    for outcome in iter_chunks(
        paths,
        chunker,
        docling_serve=docling_serve,
        max_file_bytes=max_file_bytes,
        workers=workers,
        progress=progress,
    ):
        if isinstance(outcome, DocumentFailure):
            report.failures.append(outcome)
            report.quality.add_failure()
        else:
            report.documents.append(outcome.document)
            report.chunks.extend(outcome.chunks)
            report.quality.add(outcome.document, outcome.chunks)
    return report


def _first_of_its_name(
    path: Path, outcome: DocumentChunks | DocumentFailure, seen: dict[str, Path]
) -> DocumentChunks | DocumentFailure:
    """Refuse a second document with the same id: the two would overwrite each other in any store."""
    if isinstance(outcome, DocumentFailure):
        return outcome
    first = seen.setdefault(outcome.document.document_id, path)
    if first == path:
        return outcome
    problem = f"has the same name as {first}, and a document is known by its name"
    return DocumentFailure(path, DocumentError(path, problem, "Rename one of the two files"))


def _lost(path: Path, code: int | None) -> DocumentFailure:
    problem = f"the process that chunked it died (exit code {code})"
    return DocumentFailure(path, DocumentError(path, problem, "Chunk it alone; it may need more memory"))


def _chunk_one(
    path: Path, chunker: Chunker, docling_serve: str | None, max_file_bytes: int
) -> DocumentChunks | DocumentFailure:
    try:
        return _load_and_chunk(path, chunker, docling_serve, max_file_bytes)
    except DocumentError as error:
        return DocumentFailure(path, error)


def _load_and_chunk(path: Path, chunker: Chunker, docling_serve: str | None, max_file_bytes: int) -> DocumentChunks:
    started = time.perf_counter()
    source = load_document(path, docling_serve=docling_serve, max_file_bytes=max_file_bytes)
    return chunk_loaded(source, chunker, loading=time.perf_counter() - started)


def chunk_loaded(source: SourceDocument, chunker: Chunker, *, loading: float = 0.0) -> DocumentChunks:
    """Chunk and check one document that is loaded.

    Args:
        source: the document.
        chunker: cuts it.
        loading: seconds that loading it took.

    Raises:
        DocumentError: the chunker cannot cope with it.
    """
    started = time.perf_counter()
    try:
        chunks = chunker.chunk(source)
        chunked = time.perf_counter()
        uncovered = uncovered_items(source.document, chunks)
        problems = check_chunks(source, chunks, chunker)
    except (DocumentError, MissingExtraError):
        raise
    except Exception as error:  # docling-core meets documents nobody has tried; the others must go on
        problem = f"chunking it failed with {type(error).__name__}: {error}"
        raise DocumentError(source.path, problem, "Please report it with the file") from error
    checked = time.perf_counter()
    document = ChunkedDocument(
        document_id=source.document_id,
        title=source.title,
        source=source.source,
        path=str(source.path),
        media_type=source.media_type,
        sha256=source.sha256,
        pages=len(source.document.pages),
        chunk_count=len(chunks),
        token_count=sum(chunk.token_count for chunk in chunks),
        uncovered_items=uncovered,
        seconds=loading + checked - started,
        size=source.path.stat().st_size if source.path.is_file() else 0,
        loading=loading,
        chunking=chunked - started,
        checking=checked - chunked,
        problems=problems,
    )
    return DocumentChunks(document, chunks)
