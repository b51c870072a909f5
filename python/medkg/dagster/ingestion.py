"""From files to vectors: reading, chunking and embedding; knows clients and documents, and nothing of Dagster.

A document that fails is set aside and its siblings go on. Only what belongs to one document is treated so: a text that
the server refuses, a file that cannot be read. A fault of the network, of the GPU or of the request as a whole goes
through, for the step to be retried or to fail.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from medkg import errors
from medkg.dagster.outputs import SetAside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    import medkg
    from medkg.chunking import Chunk, Chunker, SourceDocument
    from medkg.dagster.resource import RunServices

    Progress = Callable[[int, int], None]
    """Called with what is done and what there is to do."""

GROUP_CHUNKS: Final = 512
"""Chunks handled in one call, more where one document has more: what a refused text makes us ask again for."""
_TEXT_FIELD: Final = "texts["
_FORMATS: Final = {
    "application/json": "Docling JSON",
    "application/pdf": "PDF",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "DOCX",
    "application/xml": "JATS",
    "text/html": "HTML",
    "text/markdown": "Markdown",
}


def read_documents(
    paths: Sequence[str], *, docling_serve: str | None, progress: Progress
) -> tuple[list[SourceDocument], list[SetAside]]:
    """Reads files and folders of documents.

    Args:
        paths: Files, or folders that are searched.
        docling_serve: Address of a docling-serve that converts PDF; without one a PDF is set aside.
        progress: Called after each file.

    Raises:
        medkg.chunking.DoclingServeUnavailableError: The docling-serve does not answer; no PDF is set aside for that.
        medkg.chunking.MissingExtraError: The packages of `medkg[chunking]` are missing.
    """
    from medkg.chunking import MissingExtraError, discover, load_document  # noqa: PLC0415 - Docling is heavy

    files = list(discover(paths))
    documents: list[SourceDocument] = []
    failed: list[SetAside] = []
    seen: dict[str, str] = {}
    for done, path in enumerate(files, start=1):
        try:
            document = load_document(path, docling_serve=docling_serve)
        except (MissingExtraError, errors.ServiceUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 -- whatever a parser throws at a bad file, the others are read
            failed.append(SetAside(str(path), _reason(error)))
        else:
            twin = seen.setdefault(document.document_id, str(path))
            if twin == str(path):
                documents.append(document)
            else:
                failed.append(SetAside(str(path), f"has the same name as {twin}; rename one of the two"))
        progress(done, len(files))
    return documents, failed


def chunk_documents(
    documents: Sequence[SourceDocument], chunker: Chunker, *, progress: Progress
) -> tuple[list[Chunk], list[SetAside]]:
    """Chunks documents, in their order; one without any text is set aside."""
    chunks: list[Chunk] = []
    failed: list[SetAside] = []
    for done, document in enumerate(documents, start=1):
        try:
            made = list(chunker.chunk(document))
        except Exception as error:  # noqa: BLE001 -- one odd document must not cost the others
            failed.append(SetAside(document.document_id, _reason(error)))
        else:
            chunks.extend(made)
            if not made:
                failed.append(SetAside(document.document_id, "has no text to chunk"))
        progress(done, len(documents))
    return chunks, failed


def embed_chunks(
    chunks: Sequence[Chunk], run: RunServices, *, model: str | None, progress: Progress
) -> tuple[list[medkg.EmbeddingResult], list[Chunk], list[SetAside]]:
    """Embeds chunks, with their headings in front, a group of documents at a time.

    Returns:
        The results in order, the chunks their rows stand for, and the documents whose text the server refused.

    Raises:
        medkg.MedkgError: Anything but a refused text; or every text was refused; or the groups met different models.
    """
    results: list[medkg.EmbeddingResult] = []
    embedded: list[Chunk] = []
    failed: list[SetAside] = []
    refused: errors.ValidationError | None = None
    pending = list(by_document(chunks, at_most=GROUP_CHUNKS))[::-1]
    while pending:
        group = pending.pop()
        try:
            result = run.embedding.embed(
                [chunk.embedding_text for chunk in group],
                model=model,
                truncation="refuse",  # a chunk was counted to fit; if it does not, say so instead of cutting it
                progress=_after(len(embedded), len(chunks), progress),
            )
        except errors.ValidationError as error:
            if not _names_a_text(error):
                raise
            refused = error
            alone = list(by_document(group, at_most=1))
            if len(alone) == 1:
                failed.append(SetAside(group[0].document_id, _reason(error)))
            else:
                pending.extend(reversed(alone))
        else:
            if results:
                require_same_model(results[0].model_digest, result, of="the chunks before")
            results.append(result)
            embedded.extend(group)
            progress(len(embedded), len(chunks))
    if refused is not None and not embedded:
        raise refused
    return results, embedded, failed


def require_same_model(digest: str, result: medkg.EmbeddingResult, *, of: str) -> None:
    """Refuses vectors of other weights than the ones they are to be compared with: similarity would mean nothing.

    Raises:
        medkg.ValidationError: The digests differ.
    """
    if result.model_digest != digest:
        msg = (
            f"the embedding model {result.model!r} has the digest {result.model_digest}, but {of} were embedded by"
            f" {digest or 'unknown weights'}; load the same model everywhere, then materialize from embeddings on"
        )
        raise errors.ValidationError(msg, request_id=result.request_id)


def vectors_of(results: Sequence[medkg.EmbeddingResult]) -> npt.NDArray[np.float32]:
    """The rows of several results under each other; shape (0, 0) if there is none."""
    if not results:
        return np.empty((0, 0), dtype=np.float32)
    return np.concatenate([result.vectors for result in results]).astype(np.float32, copy=False)


def by_document(chunks: Sequence[Chunk], *, at_most: int) -> Iterator[list[Chunk]]:
    """Whole documents together, as many as give at most so many chunks; one alone that has more."""
    group: list[Chunk] = []
    for _, members in groupby(chunks, key=lambda chunk: chunk.document_id):
        document = list(members)
        if group and len(group) + len(document) > at_most:
            yield group
            group = []
        group.extend(document)
    if group:
        yield group


def format_of(document: SourceDocument) -> str:
    """The document's format, as people call it."""
    return _FORMATS.get(document.media_type, document.media_type)


def _after(before: int, total: int, progress: Progress) -> Progress:
    """Progress within one group, told as progress within all."""
    return lambda done, _: progress(before + done, total)


def _names_a_text(error: errors.ValidationError) -> bool:
    return any(field.startswith(_TEXT_FIELD) for field, _ in error.field_violations)


def _reason(error: BaseException) -> str:
    if isinstance(error, errors.MedkgError):
        return error.message
    text = str(error).strip() or "no message"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
