"""From files to vectors: reading, chunking and embedding; knows clients and documents, and nothing of Dagster.

A document that fails is set aside and its siblings go on. Only what belongs to one document is treated so: a text that
the server refuses, a file that cannot be read. A fault of the network, of the GPU or of the request as a whole goes
through, for the step to be retried or to fail.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from upath import UPath

from medkg import errors
from medkg.dagster.embedding_store import Known, content_sha256
from medkg.dagster.outputs import DocumentRecord, EmbeddingSet, SetAside
from medkg.dagster.whole_files import is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    import medkg
    from medkg import ModelInfo
    from medkg.chunking import Chunk, Chunker, ChunkingQuality, SourceDocument
    from medkg.dagster.embedding_store import EmbeddingStore
    from medkg.dagster.outputs import ChunkSet
    from medkg.dagster.resource import RunServices

    Progress = Callable[[int, int], None]
    """Called with what is done and what there is to do."""

GROUP_CHUNKS: Final = 512
"""Chunks handled in one call, more where one document has more: what a refused text makes us ask again for."""
_TEXT_FIELD: Final = "texts["
_PROBE: Final = "Is the server there?"
"""A text that no server has trouble with."""
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
            failed.append(SetAside(str(path), _reason(error)))
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
    quality: ChunkingQuality | None = None,
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
        except (MissingExtraError, errors.ServiceUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001 -- one odd document must not cost the others
            failed.append(SetAside(document.document_id, _reason(error)))
        else:
            chunks.extend(made.chunks)
            if quality is not None:
                quality.add(made.document, made.chunks)
            if not made.chunks:
                failed.append(SetAside(document.document_id, "has no text to chunk"))
        progress(done, len(documents))
    return chunks, failed


@dataclass(frozen=True)
class Embedded:
    """Chunks and their vectors."""

    chunks: list[Chunk]
    """The chunks that have a vector, in their order; of a document all or none."""
    known: Mapping[str, Known]
    """The vector of each of their texts, by its SHA-256; `content_sha256` gives it."""
    set_aside: list[SetAside]
    """Documents with a text that the server refused, or that kept failing while others did not."""
    computed: int
    """Texts that were embedded now."""
    reused: int
    """Chunks whose text had a vector before."""
    dimension: int
    """Elements of a vector."""

    @property
    def vectors(self) -> npt.NDArray[np.float32]:
        """The chunks' vectors under each other, shape (chunks, dimension)."""
        if not self.chunks:
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.stack([self.known[content_sha256(chunk.embedding_text)].vector for chunk in self.chunks])


def embed_chunks(
    chunks: Sequence[Chunk],
    run: RunServices,
    *,
    model: ModelInfo,
    store: EmbeddingStore,
    run_id: str,
    set_failing_aside: bool = False,
    progress: Progress,
) -> Embedded:
    """Embeds the chunks whose vectors are not there yet, with their headings in front, a group of documents at a time.

    Each group is stored when it comes, so that what is embedded stays so if the next one fails.

    Args:
        chunks: Chunks of whole documents, those of one together.
        run: The clients.
        model: The model.
        store: Where its vectors are, and go.
        run_id: The run that computes them.
        set_failing_aside: Whether a document whose calls fail for the network is set aside, if the server answers
            other calls: for the last attempt of a step.
        progress: Called with the texts embedded.

    Raises:
        medkg.MedkgError: Anything but a refused text; or every text was refused; or the server has other weights now.
    """
    digests = {chunk.chunk_id: content_sha256(chunk.embedding_text) for chunk in chunks}
    known = store.find(set(digests.values()))
    there = set(known)
    missing = [chunk for chunk in chunks if digests[chunk.chunk_id] not in known]
    failed: dict[str, SetAside] = {}
    refused: errors.MedkgError | None = None
    pending = list(by_document(missing, at_most=GROUP_CHUNKS))[::-1]
    while pending:
        group = pending.pop()
        texts = {digests[chunk.chunk_id]: chunk.embedding_text for chunk in group}
        new = [digest for digest in texts if digest not in known]
        if not new:  # the same text stood in a group before
            continue
        try:
            result = run.embedding.embed(
                [texts[digest] for digest in new],
                model=model.name,
                truncation="refuse",  # a chunk was counted to fit; if it does not, say so instead of cutting it
                progress=_after(len(known) - len(there), len(missing), progress),
            )
        except errors.MedkgError as error:
            if not _is_the_texts_fault(error, run, model, ask=set_failing_aside):
                raise
            refused = error
            alone = list(by_document(group, at_most=1))
            if len(alone) == 1:
                failed[group[0].document_id] = SetAside(group[0].document_id, _reason(error))
            else:
                pending.extend(reversed(alone))
        else:
            require_same_model(model.digest, result, of="the chunks before")
            vectors = result.as_float32()
            store.add(new, vectors, run_id=run_id)
            known.update((digest, Known(row, run_id)) for digest, row in zip(new, vectors, strict=True))
            progress(len(known) - len(there), len(missing))
    whole = [chunk for chunk in chunks if chunk.document_id not in failed]
    if refused is not None and not whole:
        raise refused
    store.tidy()
    return Embedded(
        chunks=whole,
        known=known,
        set_aside=list(failed.values()),
        computed=len(known) - len(there),
        reused=sum(digests[chunk.chunk_id] in there for chunk in whole),
        dimension=model.dimension,
    )


def embedding_set(done: Embedded, chunks: ChunkSet, *, model: ModelInfo, prompt: str) -> EmbeddingSet:
    """What `embeddings` hands on: the vectors, and where each is from."""
    digests = [content_sha256(chunk.embedding_text) for chunk in done.chunks]
    return EmbeddingSet(
        tenant=chunks.tenant,
        chunk_ids=[chunk.chunk_id for chunk in done.chunks],
        vectors=done.vectors,
        model=model.name,
        model_digest=model.digest,
        set_aside=done.set_aside,
        chunks_digest=chunks.digest,
        document_ids=[chunk.document_id for chunk in done.chunks],
        document_sha256=[chunk.document_sha256 for chunk in done.chunks],
        content_sha256=digests,
        embedded_by=[done.known[digest].embedded_by for digest in digests],
        prompt=prompt,
        dimension=model.dimension,
        normalized=model.normalized,
    )


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


def format_of(document: DocumentRecord) -> str:
    """The document's format, as people call it."""
    return _FORMATS.get(document.media_type, document.media_type)


def _after(before: int, total: int, progress: Progress) -> Progress:
    """Progress within one group, told as progress within all."""
    return lambda done, _: progress(before + done, total)


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


def _is_the_texts_fault(error: errors.MedkgError, run: RunServices, model: ModelInfo, *, ask: bool) -> bool:
    """Whether a call failed for its texts: the server names one, or (if it may be asked) it answers for another."""
    if isinstance(error, errors.ValidationError):
        return any(field.startswith(_TEXT_FIELD) for field, _ in error.field_violations)
    if not ask or not isinstance(error, (errors.ServiceUnavailableError, errors.ServiceTimeoutError)):
        return False
    try:
        run.embedding.embed([_PROBE], model=model.name)
    except errors.MedkgError:
        return False
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, errors.MedkgError):
        return error.message
    text = str(error).strip() or "no message"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
