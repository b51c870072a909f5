"""From a `SourceDocument` to chunks: Docling decides where to cut, this keeps the promises.

The promises: no chunk is longer than the model takes, special tokens included; no text of the body is lost; equal
input gives equal chunks with equal ids. Whatever Docling's splitter leaves too long is cut again here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medkg.chunking.chunk import BoundingBox, Chunk
from medkg.chunking.errors import chunking_extra
from medkg.chunking.text import clean, split_to_fit

with chunking_extra():
    from docling_core.transforms.chunker.doc_chunk import DocChunk
    from docling_core.types.doc import (
        DocItem,
        DocItemLabel,
        FloatingItem,
        SectionHeaderItem,
        TitleItem,
    )

    from medkg.chunking.hybrid import BoundedHybridChunker
    from medkg.chunking.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docling_core.types.doc import DoclingDocument

    from medkg.chunking.loading import SourceDocument

#: Below this there is no room for a heading and a few words.
_LEAST_MAX_TOKENS = 32
_TABLE_LABELS = frozenset({DocItemLabel.TABLE, DocItemLabel.DOCUMENT_INDEX})
_STRATEGIES = ("hybrid", "hierarchical")


@dataclass(frozen=True, slots=True)
class _Passage:
    """A piece of a document on its way to becoming a chunk."""

    text: str
    embedding_text: str
    headings: tuple[str, ...]
    items: tuple[DocItem, ...]


class Chunker:
    """Cuts documents into chunks for one embedding model.

    Strategies: "hierarchical" makes one chunk per element of the document (paragraph, list, table), as docling-core's
    HierarchicalChunker does, and cuts only the elements that are too long. "hybrid" then also merges neighbours under
    the same headings while they fit, as docling-core's HybridChunker does.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        max_tokens: int,
        *,
        strategy: Literal["hybrid", "hierarchical"] = "hybrid",
        merge_peers: bool = True,
    ) -> None:
        """Prepare for one model.

        Args:
            tokenizer_json: the model's tokenizer.json.
            max_tokens: longest input of the model, special tokens included; at least 32.
            strategy: see the class.
            merge_peers: whether "hybrid" merges neighbours.

        Raises:
            ValueError: an argument is out of range, or `tokenizer_json` is no tokenizer.
        """
        if max_tokens < _LEAST_MAX_TOKENS:
            message = f"max_tokens: {max_tokens} is too few; use at least {_LEAST_MAX_TOKENS}"
            raise ValueError(message)
        if strategy not in _STRATEGIES:
            message = f"strategy: {strategy!r} is unknown; use one of {', '.join(_STRATEGIES)}"
            raise ValueError(message)
        self._tokenizer = ModelTokenizer.from_json(tokenizer_json, max_tokens)
        merge = merge_peers and strategy == "hybrid"
        self._chunker = BoundedHybridChunker.build(self._tokenizer, merge_peers=merge)

    @property
    def max_tokens(self) -> int:
        """Longest chunk this chunker makes, special tokens included."""
        return self._tokenizer.max_input_tokens

    def chunk(self, source: SourceDocument) -> list[Chunk]:
        """Cut one document; the chunks are in reading order."""
        chunks: list[Chunk] = []
        for passage in self._fitting(self._passages(source.document)):
            ordinal = len(chunks)
            digest = hashlib.sha256(passage.embedding_text.encode("utf-8")).hexdigest()[:12]
            boxes = tuple(_boxes(passage.items))
            pages = tuple(sorted({box.page for box in boxes}))
            chunks.append(
                Chunk(
                    chunk_id=f"{source.document_id}:{ordinal:05d}:{digest}",
                    document_id=source.document_id,
                    document_title=source.title,
                    source=source.source,
                    ordinal=ordinal,
                    text=passage.text,
                    embedding_text=passage.embedding_text,
                    headings=passage.headings,
                    page=pages[0] if pages else None,
                    pages=pages,
                    bounding_boxes=boxes,
                    item_refs=tuple(item.self_ref for item in passage.items),
                    token_count=self._tokenizer.count_input(passage.embedding_text),
                    document_sha256=source.sha256,
                )
            )
        return chunks

    def _passages(self, document: DoclingDocument) -> Iterator[_Passage]:
        """Give what Docling's chunker makes, and every heading it would show only in part."""
        heading_items: dict[str, DocItem] = {}
        for item, _ in document.iterate_items():
            if isinstance(item, TitleItem | SectionHeaderItem):
                heading_items.setdefault(item.text, item)
        told: set[str] = set()
        for piece in self._chunker.chunk(document):
            if not isinstance(piece, DocChunk):
                continue
            # An article without a title has an empty one.
            headings = tuple(heading for heading in piece.meta.headings or () if heading.strip())
            context = self._chunker.context(headings)
            for heading in headings:
                if heading not in context and heading not in told:
                    told.add(heading)
                    own = (heading_items[heading],) if heading in heading_items else ()
                    yield _Passage(clean(heading), clean(heading), (clean(heading),), own)
            text = clean(piece.text)
            if any(item.label in _TABLE_LABELS for item in piece.meta.doc_items):
                # Docling escapes the bar for Markdown's sake; people and models read the plain sign.
                text = text.replace("&#124;", "|")
            if not text.strip() and not (headings and headings[-1] in context):
                continue
            yield _Passage(
                text=text if text.strip() else clean(headings[-1]),
                embedding_text=clean("\n".join(part for part in (*context, text) if part.strip())),
                headings=tuple(clean(heading) for heading in headings),
                items=tuple(_with_captions(piece.meta.doc_items, document)),
            )

    def _fitting(self, passages: Iterator[_Passage]) -> Iterator[_Passage]:
        """Cut what is still too long: shortened headings told in full, and anything Docling's splitter missed."""
        for passage in passages:
            if self._fits(passage.embedding_text):
                yield passage
                continue
            context = "\n".join(self._chunker.context(passage.headings))
            prefix = f"{context}\n" if passage.embedding_text != passage.text else ""

            def fits(text: str, prefix: str = prefix) -> bool:
                return self._fits(prefix + text)

            for text in split_to_fit(passage.text, fits):
                yield _Passage(text, prefix + text, passage.headings, passage.items)

    def _fits(self, text: str) -> bool:
        return self._tokenizer.count_input(text) <= self._tokenizer.max_input_tokens


def _with_captions(items: Sequence[DocItem], document: DoclingDocument) -> Iterator[DocItem]:
    """Give the items, and the captions that tables and pictures bring along, each once."""
    seen: set[str] = set()
    for item in items:
        # Docling's chunker hands back copies that have forgotten their kind.
        whole = _resolve(item, document)
        captions = [ref.resolve(document) for ref in whole.captions] if isinstance(whole, FloatingItem) else []
        for part in (*captions, whole):
            if isinstance(part, DocItem) and part.self_ref not in seen:
                seen.add(part.self_ref)
                yield part


def _resolve(item: DocItem, document: DoclingDocument) -> DocItem:
    found = item.get_ref().resolve(document)
    return found if isinstance(found, DocItem) else item


def _boxes(items: Sequence[DocItem]) -> Iterator[BoundingBox]:
    for item in items:
        for place in item.prov:
            box = place.bbox
            yield BoundingBox(place.page_no, box.l, box.t, box.r, box.b, box.coord_origin.value)
