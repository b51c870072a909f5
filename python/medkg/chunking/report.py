"""What came of chunking a set of files: the chunks, one line per document, and the documents that failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.chunking.chunk import Chunk
    from medkg.chunking.errors import DocumentError
    from medkg.chunking.quality import ChunkingQuality

Check = Literal["coverage", "overlap", "limit", "order", "table", "section"]
"""What is checked of chunks; see `medkg.chunking.check_chunks`."""


@dataclass(frozen=True, slots=True)
class ChunkProblem:
    """One thing that is wrong with a document's chunks.

    Attributes:
        check: which check found it.
        chunk_id: the chunk; of a lost text the last chunk before it.
        problem: what is wrong.
        action: what the reader can do about it.
    """

    check: Check
    chunk_id: str
    problem: str
    action: str

    def __str__(self) -> str:
        """Give it as a sentence."""
        return f"{self.chunk_id}: {self.problem}. {self.action}."

    def to_dict(self) -> dict[str, str]:
        """Give the fields as a JSON-safe dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ChunkedDocument:
    """One document that was chunked.

    Attributes:
        document_id, title, source, media_type, sha256: as in `SourceDocument`.
        path: the file, as given.
        pages: pages the document says it has; 0 when the format has none.
        chunk_count, token_count: its chunks and their tokens, special tokens included.
        uncovered_items: Docling items whose text is not whole in the chunks; empty when nothing was lost.
        seconds: time to load, chunk and check it.
        size: bytes of its file.
        loading, chunking, checking: the parts of `seconds`.
        problems: what the check of its chunks found; empty when they are as they should be.
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
    size: int = 0
    loading: float = 0.0
    chunking: float = 0.0
    checking: float = 0.0
    problems: tuple[ChunkProblem, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a JSON-safe dict."""
        problems = [problem.to_dict() for problem in self.problems]
        return {**asdict(self), "uncovered_items": list(self.uncovered_items), "problems": problems}


@dataclass(frozen=True, slots=True)
class DocumentChunks:
    """One document and its chunks."""

    document: ChunkedDocument
    chunks: list[Chunk]


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

    quality: ChunkingQuality
    chunks: list[Chunk] = field(default_factory=list)
    documents: list[ChunkedDocument] = field(default_factory=list)
    failures: list[DocumentFailure] = field(default_factory=list)
