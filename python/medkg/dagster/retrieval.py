"""From vectors to answers: the index and the questions asked of it; knows clients, and nothing of Dagster.

Nothing that was stored before is lost: points are added, replaced, or (where a document has fewer chunks than it had)
its surplus is taken out, after the new points are on disk.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from medkg import RerankQuery
from medkg.dagster.chunk_embedding import GROUP_CHUNKS, by_document, require_same_model
from medkg.dagster.outputs import Answer, Passage
from medkg.filters import Equals

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    import medkg
    from medkg.chunking import Chunk
    from medkg.dagster.ingestion import Progress
    from medkg.dagster.outputs import EmbeddingSet, IndexSummary
    from medkg.dagster.resource import RunServices

_SURPLUS_WINDOW: Final = 256
_DIGEST_FIELD: Final = "model_digest"


def chunks_of(embeddings: EmbeddingSet, chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunk of each row of the embeddings, which were made from these chunks."""
    by_id = {chunk.chunk_id: chunk for chunk in chunks}
    return [by_id[chunk_id] for chunk_id in embeddings.chunk_ids]


def index_chunks(
    chunks: Sequence[Chunk],
    vectors: npt.NDArray[np.float32],
    run: RunServices,
    *,
    collection: str,
    model_digest: str = "",
    progress: Progress,
) -> tuple[int, int, int]:
    """Writes points to a collection that is there, a group of documents at a time; `vectors` has a row for each chunk.

    Each point says which weights made it, so that what other weights made is told apart.

    Returns:
        Points inserted, replaced and removed.
    """
    inserted = replaced = removed = written = 0
    for group in by_document(chunks, at_most=GROUP_CHUNKS):
        rows = np.ascontiguousarray(vectors[written : written + len(group)])
        result = run.vector.upsert(
            collection,
            [point_id(chunk.document_id, chunk.ordinal) for chunk in group],
            rows,
            [{**_payload(chunk), _DIGEST_FIELD: model_digest} for chunk in group],
        )
        inserted += result.inserted
        replaced += result.replaced
        removed += _remove_surplus(group, rows, run, collection)
        written += len(group)
        progress(written, len(chunks))
    return inserted, replaced, removed


def stale_points(run: RunServices, collection: str, model_digest: str) -> int:
    """How many points of a collection other weights made than those; at least one point must be of these."""
    return run.vector.count(collection, ~Equals(_DIGEST_FIELD, model_digest))


@dataclass(frozen=True)
class Answering:
    """What came of answering questions."""

    answers: list[Answer]
    """In the order of the questions."""
    reranking_model: str | None
    """The model that ordered the passages; None if nothing was found."""
    seconds: dict[str, float]
    """How long each part took, by name."""


@dataclass(frozen=True)
class Searched:
    """What came of searching."""

    hits: list[list[medkg.Hit]]
    """Points for each question, nearest first."""
    times: list[float]
    """Readings of the clock before embedding, between the two, and after searching."""


def search(questions: Sequence[str], index: IndexSummary, run: RunServices, *, candidates: int) -> Searched:
    """Embeds questions and finds the nearest points that the same weights made.

    Raises:
        medkg.ValidationError: The questions were embedded by other weights than the collection.
    """
    times = [time.perf_counter()]
    embedded = run.embedding.embed(questions, model=index.model)
    require_same_model(index.model_digest, embedded, of=f"the vectors of {index.collection!r}")
    times.append(time.perf_counter())
    same_weights = Equals(_DIGEST_FIELD, index.model_digest) if index.stale else None
    queries = np.ascontiguousarray(embedded.vectors, dtype=np.float32)
    hits = run.vector.search(index.collection, queries, k=candidates, filter=same_weights)
    return Searched(hits, [*times, time.perf_counter()])


def answer_questions(
    questions: Sequence[str],
    index: IndexSummary,
    run: RunServices,
    *,
    candidates: int,
    top_n: int,
    fusion: Literal["none", "standardized_sum"],
    model: str | None,
) -> Answering:
    """Embeds questions, searches the collection and reranks what was found.

    Args:
        questions: At least one.
        index: The collection, and the model its vectors are of.
        run: The clients.
        candidates: Passages found by vector for each question.
        top_n: Passages kept after reranking.
        fusion: How the reranker's score and the similarity are put together.
        model: Reranking model; None is the server's default.

    Raises:
        medkg.ValidationError: The questions were embedded by other weights than the collection.
    """
    searched = search(questions, index, run, candidates=candidates)
    found, times = searched.hits, searched.times
    asked = [number for number, hits in enumerate(found) if hits]
    if not asked:
        return Answering([Answer(question, ()) for question in questions], None, _parts(times))
    reranked = run.reranking.rerank_batch(
        [
            RerankQuery(
                questions[number],
                [_text(hit) for hit in found[number]],
                first_stage_scores=[hit.score for hit in found[number]],
            )
            for number in asked
        ],
        fusion=fusion,
        top_n=top_n,
        model=model,
    )
    times.append(time.perf_counter())
    passages = {
        number: [_passage(found[number], ranked, position) for position, ranked in enumerate(ranking, start=1)]
        for number, ranking in zip(asked, reranked.rankings, strict=True)
    }
    return Answering(
        answers=[Answer(question, passages.get(n, ())) for n, question in enumerate(questions)],
        reranking_model=reranked.model,
        seconds=_parts(times),
    )


def _parts(times: Sequence[float]) -> dict[str, float]:
    """Seconds of each part, from the readings of the clock before, between and after them."""
    return {name: float(span) for name, span in zip(("embed", "search", "rerank"), np.diff(times), strict=False)}


def point_id(document_id: str, ordinal: int) -> str:
    """Id of a chunk's point. It counts on within the document, so that a shorter version's surplus can be named."""
    return f"{document_id}#{ordinal}"


def _remove_surplus(group: Sequence[Chunk], vectors: npt.NDArray[np.float32], run: RunServices, collection: str) -> int:
    """Takes out the points of these documents past their last chunk, also where an earlier try broke off.

    A delete that says 0 may be the repetition of one whose answer was lost, so whether there is a point past the end is
    asked by writing one there: the store answers whether it replaced something, and says so again when asked again. Ids
    of a document are dense. The surplus is taken out from its top down and the first point past the end goes last, so
    that what a broken-off try leaves is dense too, and the next one finds it.
    """
    last = {chunk.document_id: row for row, chunk in enumerate(group)}

    def probe(documents: Sequence[str], offset: int) -> int:
        """Writes a point so far past each one's end, out of the way of every search; how many were not there."""
        rows = [last[document] for document in documents]
        result = run.vector.upsert(
            collection,
            [point_id(group[row].document_id, group[row].ordinal + 1 + offset) for row in rows],
            np.ascontiguousarray(-vectors[rows]),
            [_payload(group[row]) for row in rows],
        )
        return result.inserted

    def delete(document: str, offsets: range) -> int:
        end = group[last[document]].ordinal + 1
        return run.vector.delete(collection, [point_id(document, end + offset) for offset in offsets])

    made = probe(list(last), 0)
    removed = 0
    for document in last if made < len(last) else ():
        top = 0
        while True:
            top += _SURPLUS_WINDOW
            inserted = probe([document], top)
            made += inserted
            if inserted:
                break
        for first in range(top - _SURPLUS_WINDOW + 1, 0, -_SURPLUS_WINDOW):
            removed += delete(document, range(first, first + _SURPLUS_WINDOW))
    removed += run.vector.delete(collection, [point_id(d, group[row].ordinal + 1) for d, row in last.items()])
    return max(0, removed - made)


def _payload(chunk: Chunk) -> dict[str, object]:
    return {
        "chunk_id": chunk.chunk_id,
        "document_id": chunk.document_id,
        "document_title": chunk.document_title,
        "document_sha256": chunk.document_sha256,
        "source": str(chunk.source),
        "headings": list(chunk.headings),
        "section": chunk.section,
        "page": chunk.page,
        "text": chunk.text,
    }


def _text(hit: medkg.Hit) -> str:
    payload = hit.payload or {}
    return "\n".join([*payload.get("headings", ()), str(payload.get("text", ""))])


def _passage(hits: Sequence[medkg.Hit], ranked: medkg.RankedDocument, rank: int) -> Passage:
    hit = hits[ranked.index]
    payload = hit.payload or {}
    return Passage(
        rank=rank,
        relevance=ranked.relevance,
        score=ranked.score,
        similarity=hit.score,
        retrieved_rank=ranked.index + 1,
        chunk_id=str(payload.get("chunk_id", hit.id)),
        document_id=str(payload.get("document_id", "")),
        document_title=str(payload.get("document_title", "")),
        source=str(payload.get("source", "")),
        headings=tuple(payload.get("headings", ())),
        page=payload.get("page"),
        text=str(payload.get("text", "")),
    )
