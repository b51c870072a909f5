"""How good the chunks of many documents are, and how fast they came: one report that grows with each document.

It keeps counts only, never chunks, so it takes the same memory for ten documents and for a million.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medkg.chunking.chunk import Chunk
    from medkg.chunking.report import ChunkedDocument

#: Problems kept in full; of the others only the number is known.
_KEPT_PROBLEMS = 20
#: A chunk below this part of the limit says little by itself.
_SMALL = 0.1


@dataclass(slots=True)
class ChunkingQuality:
    """What can be said of all chunks so far.

    Attributes:
        max_tokens: the limit the chunks were made for, in tokens.
        documents, failed: documents chunked, and documents that were not.
        chunks, tables, overlapping: all chunks, those with rows of a table, those that repeat the end of another.
        size: bytes of the files.
        uncovered_items: elements of documents whose text is not whole in the chunks.
        token_counts: how many chunks have so many tokens.
        sections: how many chunks are of each kind of section.
        problems: how many problems each check found.
        examples: the first problems, as sentences.
        loading, chunking, checking: seconds of work, in all processes together.
        started: reading of `time.perf_counter` at the beginning.
    """

    max_tokens: int
    documents: int = 0
    failed: int = 0
    chunks: int = 0
    tables: int = 0
    overlapping: int = 0
    size: int = 0
    uncovered_items: int = 0
    token_counts: Counter[int] = field(default_factory=Counter)
    sections: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    loading: float = 0.0
    chunking: float = 0.0
    checking: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, document: ChunkedDocument, chunks: Sequence[Chunk]) -> None:
        """Count a document and its chunks."""
        self.documents += 1
        self.size += document.size
        self.uncovered_items += len(document.uncovered_items)
        self.loading += document.loading
        self.chunking += document.chunking
        self.checking += document.checking
        self.chunks += len(chunks)
        for chunk in chunks:
            self.token_counts[chunk.token_count] += 1
            self.sections[chunk.section] += 1
            self.tables += chunk.has_table
            self.overlapping += chunk.overlap > 0
        for problem in document.problems:
            self.problems[problem.check] += 1
            if len(self.examples) < _KEPT_PROBLEMS:
                self.examples.append(str(problem))

    def add_failure(self) -> None:
        """Count a document that was not chunked."""
        self.failed += 1

    @property
    def tokens(self) -> int:
        """Tokens of all chunks, special tokens included."""
        return sum(tokens * count for tokens, count in self.token_counts.items())

    def quantile(self, share: float) -> int:
        """Give the number of tokens that this share of the chunks does not exceed; 0 without chunks."""
        wanted, seen = share * self.chunks, 0
        for tokens in sorted(self.token_counts):
            seen += self.token_counts[tokens]
            if seen >= wanted:
                return tokens
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Give everything as a JSON-safe dict, with the rates since the beginning."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        small = sum(count for tokens, count in self.token_counts.items() if tokens < self.max_tokens * _SMALL)
        return {
            "documents": self.documents,
            "failed": self.failed,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "limit": self.max_tokens,
            "longest": self.quantile(1.0),
            "median": self.quantile(0.5),
            "p05": self.quantile(0.05),
            "p95": self.quantile(0.95),
            "fill": round(self.tokens / max(self.chunks * self.max_tokens, 1), 4),
            "small": small,
            "tables": self.tables,
            "overlapping": self.overlapping,
            "uncovered_items": self.uncovered_items,
            "sections": dict(self.sections.most_common()),
            "problems": dict(self.problems),
            "examples": list(self.examples),
            "seconds": round(seconds, 4),
            "loading_seconds": round(self.loading, 4),
            "chunking_seconds": round(self.chunking, 4),
            "checking_seconds": round(self.checking, 4),
            "documents_per_second": round(self.documents / seconds, 3),
            "chunks_per_second": round(self.chunks / seconds, 3),
            "tokens_per_second": round(self.tokens / seconds, 3),
            "megabytes_per_second": round(self.size / 1e6 / seconds, 4),
        }
