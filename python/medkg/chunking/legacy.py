"""The interface of the chunkers before medkg, over today's `Chunker`: for code that moves over step by step.

It takes the older names of strategies and arguments and gives the older fields. Every use warns with
`DeprecationWarning` and says what to write instead. What asked for torch does nothing any more: there is no sentence
encoder in the worker, and no check on a GPU, so `gpu_semantic_checks` is accepted and ignored.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medkg.chunking.chunker import Chunker
from medkg.chunking.errors import DocumentError, chunking_extra
from medkg.chunking.loading import SourceDocument, load_document

with chunking_extra():
    from docling_core.types.doc import DocItemLabel, DoclingDocument

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medkg.chunking.chunk import Chunk, Strategy

STRATEGIES: Final[Mapping[str, Strategy]] = {
    "section_aware": "clinical",
    "clinical_role": "clinical",
    "docling": "hybrid",
    "hybrid": "hybrid",
    "sliding_window": "hybrid",
    "semantic_splitter": "hybrid",
    "semantic_cluster": "hybrid",
    "layout_heuristic": "hierarchical",
    "table": "hierarchical",
}
"""What each of the older strategies is today."""

_RENAMED: Final = {
    "target_tokens": "max_tokens",
    "chunk_size": "max_tokens",
    "overlap": "overlap_tokens",
    "chunk_overlap": "overlap_tokens",
}
_IGNORED: Final = {
    "gpu_semantic_checks": "there is no torch in the worker to check with; check_chunks() checks chunks without",
    "model_name": "no sentence encoder is used",
    "encoder": "no sentence encoder is used",
    "tau_coh": "no sentence encoder is used",
    "min_tokens": "neighbours are merged while they fit",
    "token_counter": "the embedding model's own tokenizer counts",
    "segmenter": "Docling's structure decides where to cut",
    "context_filter": "Docling's structure decides where to cut",
}


@dataclass(frozen=True, slots=True)
class LegacyChunk:
    """A chunk with the older names.

    Attributes:
        chunk_id, doc_id, tenant_id: the chunk, its document, and for whom it was made.
        body: the text.
        title_path: the headings above it.
        section: kind of its section.
        start_char, end_char: where it lies in all bodies of the document joined by line breaks.
        granularity: "table", "section" or "paragraph".
        chunker, chunker_version: the older strategy, and the strategy of today that did it.
        page_no: its first page.
        meta: `token_count`, `item_refs` and `embedding_text`.
    """

    chunk_id: str
    doc_id: str
    tenant_id: str
    body: str
    title_path: tuple[str, ...]
    section: str | None
    start_char: int
    end_char: int
    granularity: str
    chunker: str
    chunker_version: str
    page_no: int | None
    meta: dict[str, Any] = field(default_factory=dict)


class LegacyChunker:
    """An older chunker: `LegacyChunker(tokenizer, 256, strategy="section_aware", gpu_semantic_checks=False)`."""

    def __init__(
        self, tokenizer_json: bytes, max_tokens: int, *, strategy: str = "section_aware", **older: object
    ) -> None:
        """Make the chunker of today that does what the older one was for.

        Args:
            tokenizer_json: the model's tokenizer.json.
            max_tokens: longest input of the model, special tokens included.
            strategy: one of `STRATEGIES`.
            older: `target_tokens` or `chunk_size`, at most `max_tokens`; `overlap` or `chunk_overlap`, in tokens;
                `gpu_semantic_checks` and others that are accepted and ignored.

        Raises:
            TypeError: an argument is neither of today nor of the older chunkers.
            ValueError: the strategy is unknown, or a number out of range.
        """
        if strategy not in STRATEGIES:
            message = f"strategy: {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}"
            raise ValueError(message)
        today = STRATEGIES[strategy]
        _warn(f"LegacyChunker(strategy={strategy!r}) is deprecated; use Chunker(strategy={today!r})")
        limits = {"max_tokens": max_tokens, "overlap_tokens": 0}
        for name, value in older.items():
            if name in _IGNORED:
                _warn(f"{name} is deprecated and does nothing: {_IGNORED[name]}")
            elif name in _RENAMED and isinstance(value, int):
                _warn(f"{name} is deprecated; use {_RENAMED[name]}")
                limits[_RENAMED[name]] = min(value, max_tokens)
            else:
                message = f"{name}={value!r}: neither today's nor the older chunkers take it; remove it"
                raise TypeError(message)
        self.name = strategy
        self.chunker = Chunker(
            tokenizer_json, limits["max_tokens"], strategy=today, overlap_tokens=limits["overlap_tokens"]
        )

    def chunk(
        self,
        document: SourceDocument | DoclingDocument | Path | str,
        *,
        tenant_id: str,
        granularity: str | None = None,
        blocks: object = None,
    ) -> list[LegacyChunk]:
        """Chunk a document: a file, or what Docling made of one.

        Args:
            document: what to chunk.
            tenant_id: stands on each chunk.
            granularity: stands on each chunk in place of its own.
            blocks: the older parsers' blocks; only None is taken.

        Raises:
            DocumentError: the file cannot be used.
            TypeError: `blocks` were given.
        """
        if blocks is not None:
            message = "blocks: parts of the older parsers' documents are not taken; give the whole Docling document"
            raise TypeError(message)
        source = _source(document)
        made: list[LegacyChunk] = []
        start = 0
        for chunk in self.chunker.chunk(source):
            made.append(self._older(chunk, tenant_id, granularity, start))
            start = made[-1].end_char + 1
        return made

    def chunk_text(self, tenant_id: str, document_id: str, text: str) -> list[LegacyChunk]:
        """Chunk plain text, whose paragraphs an empty line parts.

        Raises:
            DocumentError: there is no text.
        """
        document = DoclingDocument(name=document_id)
        for paragraph in text.split("\n\n"):
            if paragraph.strip():
                document.add_text(DocItemLabel.PARAGRAPH, paragraph.strip())
        if not document.texts:
            raise DocumentError(document_id, "the text is empty", "Leave it out")
        return self.chunk(document, tenant_id=tenant_id)

    def _older(self, chunk: Chunk, tenant_id: str, granularity: str | None, start: int) -> LegacyChunk:
        own = "table" if chunk.has_table else "section" if self.chunker.strategy == "clinical" else "paragraph"
        return LegacyChunk(
            chunk_id=chunk.chunk_id,
            doc_id=chunk.document_id,
            tenant_id=tenant_id,
            body=chunk.text,
            title_path=chunk.headings,
            section=chunk.section,
            start_char=start,
            end_char=start + len(chunk.text),
            granularity=granularity or own,
            chunker=self.name,
            chunker_version=f"medkg {self.chunker.strategy}",
            page_no=chunk.page,
            meta={
                "token_count": chunk.token_count,
                "item_refs": list(chunk.item_refs),
                "embedding_text": chunk.embedding_text,
            },
        )


def _source(document: SourceDocument | DoclingDocument | Path | str) -> SourceDocument:
    if isinstance(document, SourceDocument):
        return document
    if isinstance(document, DoclingDocument):
        digest = hashlib.sha256(document.model_dump_json().encode()).hexdigest()
        name = document.name
        return SourceDocument(name, name, name, Path(name), "application/json", digest, document)
    return load_document(document)


def _warn(message: str) -> None:
    # The caller of the caller: the line that has to change.
    warnings.warn(message, DeprecationWarning, stacklevel=3)
