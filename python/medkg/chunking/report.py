"""What came of chunking a set of files: the chunks, one line per document, and the documents that failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.chunking.chunk import Chunk
    from medkg.chunking.errors import DocumentError


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """One document that was chunked.

    Attributes:
        document_id, title, source, media_type, sha256: as in `SourceDocument`.
        path: the file, as given.
        pages: pages the document says it has; 0 when the format has none.
        chunk_count, token_count: its chunks and their tokens, special tokens included.
        uncovered_items: Docling items whose text is not whole in the chunks; empty when nothing was lost.
        seconds: time to load and chunk it.
    """

    document_id: str
    title: str
    source: str
    path: str
    media_type: str
    sha256: str
    pages: int
    chunk_count: int
    token_count: int
    uncovered_items: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a JSON-safe dict."""
        return {**asdict(self), "uncovered_items": list(self.uncovered_items)}


@dataclass(frozen=True, slots=True)
class DocumentFailure:
    """One document that was not chunked, and why."""

    path: Path
    error: DocumentError

    def to_dict(self) -> dict[str, str]:
        """Give path, problem and action as JSON-safe strings."""
        return self.error.to_dict()


@dataclass(frozen=True, slots=True)
class ChunkingReport:
    """The outcome for a set of files, each list in the order of the files."""

    chunks: list[Chunk] = field(default_factory=list)
    documents: list[ChunkedDocument] = field(default_factory=list)
    failures: list[DocumentFailure] = field(default_factory=list)
