"""The tables and pictures of the pipeline's assets: what a person looks at first."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

import dagster as dg
import numpy as np

from medkg.dagster import metadata, pictures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medkg.chunking import Chunk
    from medkg.dagster.outputs import Answer, DocumentRecord

_ROWS: Final = 8
_CHARS: Final = 80
_HEATMAP_DOCUMENTS: Final = 16


def documents_table(documents: Sequence[DocumentRecord]) -> dg.TableMetadataValue:
    """The first documents: file, format, length, digest."""
    return metadata.table(
        [
            {
                "document": document.source,
                "format": document.media_type,
                "bytes": document.bytes,
                "sha256": document.sha256[:12],
                "id": document.document_id,
            }
            for document in documents[:_ROWS]
        ]
    )


def chunks_table(chunks: Sequence[Chunk]) -> dg.TableMetadataValue:
    """The first chunks: where each stands, its length in tokens, the beginning of its text."""
    return metadata.table([_chunk_row(chunk) for chunk in chunks[:_ROWS]])


def embeddings_table(chunks: Sequence[Chunk], vectors: npt.NDArray[np.float32]) -> dg.TableMetadataValue:
    """The first chunks with the norm and the first elements of their vectors."""
    return metadata.table(
        [
            {
                **_chunk_row(chunk),
                "norm": round(float(np.linalg.norm(vector)), 4),
                "vector": ", ".join(f"{element:.3f}" for element in vector[:4]) + ", …",
            }
            for chunk, vector in zip(chunks[:_ROWS], vectors[:_ROWS], strict=True)
        ]
    )


def points_table(chunks: Sequence[Chunk]) -> dg.TableMetadataValue:
    """How many points each document has; the documents with the most first."""
    titles = {chunk.document_id: chunk.document_title for chunk in chunks}
    counts = Counter(chunk.document_id for chunk in chunks)
    return metadata.table(
        [
            {"document": titles[document_id], "points": count, "id": document_id}
            for document_id, count in counts.most_common(_ROWS)
        ]
    )


def document_similarity(chunks: Sequence[Chunk], vectors: npt.NDArray[np.float32]) -> dg.MarkdownMetadataValue:
    """Cosine of the documents' mean vectors, as a heat map: what is alike, and what is there twice."""
    rows: dict[str, list[int]] = {}
    if not chunks:
        return dg.MetadataValue.md("no documents")
    for row, chunk in enumerate(chunks):
        rows.setdefault(chunk.document_id, []).append(row)
    titles = {chunk.document_id: chunk.document_title for chunk in chunks}
    shown = dict(islice(rows.items(), _HEATMAP_DOCUMENTS))
    means = np.stack([vectors[members].mean(axis=0) for members in shown.values()]).astype(np.float64)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    more = len(rows) - len(shown)
    title = "Similarity of documents" + (f" (the first {len(shown)} of {len(rows)})" if more else "")
    return pictures.heatmap([titles[document] for document in shown], (means @ means.T).tolist(), title=title)


def answers_text(answers: Sequence[Answer]) -> dg.MarkdownMetadataValue:
    """Questions with their passages, as Markdown."""
    return dg.MetadataValue.md("\n\n".join(_answer(answer) for answer in answers))


def shorten(text: str, limit: int = _CHARS) -> str:
    """The text on one line, cut to so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def _chunk_row(chunk: Chunk) -> dict[str, str | int | float | bool | None]:
    return {
        "document": chunk.document_title,
        "section": " > ".join(chunk.headings),
        "page": chunk.page,
        "tokens": chunk.token_count,
        "text": shorten(chunk.text),
    }


def _answer(answer: Answer) -> str:
    lines = [f"**{_plain(answer.question)}**", ""]
    for passage in answer.passages:
        where = " > ".join(passage.headings)
        page = f", page {passage.page}" if passage.page is not None else ""
        lines.append(
            f"{passage.rank}. *{_plain(passage.document_title)}*, {_plain(where)}{page}"
            f" (score {passage.score:.2f}: reranker {passage.relevance:.2f}, similarity {passage.similarity:.2f},"
            f" found at rank {passage.retrieved_rank}): {_plain(shorten(passage.text, 280))}"
        )
    return "\n".join(lines if answer.passages else [*lines, "no passage found"])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|" else character for character in text)
