"""From chunks to vectors, of which only those are computed that are not there yet; knows nothing of Dagster.

A document that fails is set aside and its siblings go on. Only what belongs to one document is treated so: a text that
the server refuses. A fault of the network, of the GPU or of the request as a whole goes through, for the step to be
retried or to fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from medkg import errors
from medkg.dagster.embedding_store import Known, content_sha256
from medkg.dagster.outputs import EmbeddingSet, SetAside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    import medkg
    from medkg import ModelInfo
    from medkg.chunking import Chunk
    from medkg.dagster.embedding_store import EmbeddingStore
    from medkg.dagster.ingestion import Progress
    from medkg.dagster.outputs import ChunkSet
    from medkg.dagster.resource import RunServices

GROUP_CHUNKS: Final = 512
"""Chunks handled in one call, more where one document has more: what a refused text makes us ask again for."""
_TEXT_FIELD: Final = "texts["
_PROBE: Final = "Is the server there?"
"""A text that no server has trouble with."""


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
                failed[group[0].document_id] = SetAside.of(group[0].document_id, error)
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


def _after(before: int, total: int, progress: Progress) -> Progress:
    """Progress within one group, told as progress within all."""
    return lambda done, _: progress(before + done, total)


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
