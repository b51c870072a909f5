"""From a `SourceDocument` to chunks: Docling decides where to cut, this keeps the promises.

The promises: no chunk is longer than the model takes, special tokens included; no text of the body is lost; equal
input gives equal chunks with equal ids. Whatever Docling's splitter leaves too long is cut again here.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from medkg.chunking.chunk import BoundingBox, Chunk, Strategy
from medkg.chunking.errors import chunking_extra
from medkg.chunking.passage import Passage, gather_sections, overlapping
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
    from medkg.chunking.sections import OTHER, Section, outline
    from medkg.chunking.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from docling_core.types.doc import DoclingDocument

    from medkg.chunking.loading import SourceDocument

#: Below this there is no room for a heading and a few words.
_LEAST_MAX_TOKENS = 32
_TABLE_LABELS = frozenset({DocItemLabel.TABLE, DocItemLabel.DOCUMENT_INDEX})


class Chunker:
    """Cuts documents into chunks for one embedding model; pickles, so that other processes can do it.

    Strategies: "hierarchical" makes one chunk per element of the document (paragraph, list, table), as docling-core's
    HierarchicalChunker does, and cuts only the elements that are too long. "hybrid" then also merges neighbours under
    the same headings while they fit, as docling-core's HybridChunker does. "clinical" merges across the sub-headings
    of a section (methods, contraindications, adverse reactions ...), and never across two sections.
    """

    def __init__(
        self,
        tokenizer_json: bytes,
        max_tokens: int,
        *,
        strategy: Strategy = "hybrid",
        merge_peers: bool = True,
        overlap_tokens: int = 0,
    ) -> None:
        """Prepare for one model.

        Args:
            tokenizer_json: the model's tokenizer.json.
            max_tokens: longest input of the model, special tokens included; at least 32.
            strategy: see the class.
            merge_peers: whether "hybrid" merges neighbours.
            overlap_tokens: how much of the chunk before each chunk repeats at its beginning, in whole words, where
                both are running text under the same headings; at most what leaves 32 of `max_tokens`.

        Raises:
            ValueError: an argument is out of range, or `tokenizer_json` is no tokenizer.
        """
        if max_tokens < _LEAST_MAX_TOKENS:
            message = f"max_tokens: {max_tokens} is too few; use at least {_LEAST_MAX_TOKENS}"
            raise ValueError(message)
        if strategy not in get_args(Strategy):
            message = f"strategy: {strategy!r} is unknown; use one of {', '.join(get_args(Strategy))}"
            raise ValueError(message)
        if not 0 <= overlap_tokens <= max_tokens - _LEAST_MAX_TOKENS:
            message = f"overlap_tokens: {overlap_tokens} is out of range; use 0 to {max_tokens - _LEAST_MAX_TOKENS}"
            raise ValueError(message)
        self._settings = (tokenizer_json, max_tokens, strategy, merge_peers, overlap_tokens)
        self._tokenizer = ModelTokenizer.from_json(tokenizer_json, max_tokens)
        # What is repeated needs room that the pieces leave.
        self._room = max_tokens - overlap_tokens
        counter = ModelTokenizer.from_json(tokenizer_json, self._room) if overlap_tokens else self._tokenizer
        self._chunker = BoundedHybridChunker.build(counter, merge_peers=merge_peers and strategy == "hybrid")

    def __reduce__(self) -> tuple[Callable[..., Chunker], tuple[bytes, int, Strategy, bool, int]]:
        """Pickle by the settings: Docling's parts do not pickle."""
        return _rebuild, self._settings

    @property
    def strategy(self) -> Strategy:
        """How it cuts."""
        return self._settings[2]

    @property
    def overlap_tokens(self) -> int:
        """How much of the chunk before a chunk may repeat, in tokens."""
        return self._settings[4]

    @property
    def max_tokens(self) -> int:
        """Longest chunk this chunker makes, special tokens included."""
        return self._tokenizer.max_input_tokens

    def count_input(self, text: str) -> int:
        """Count the tokens of a whole model input, special tokens included."""
        return self._tokenizer.count_input(text)

    def chunk(self, source: SourceDocument) -> list[Chunk]:
        """Cut one document; the chunks are in reading order."""
        self._chunker.forget()
        passages = self._fitting(self._passages(source))
        if self.strategy == "clinical":
            passages = gather_sections(passages, context=self._context, fits=self._fits)
        if self.overlap_tokens:
            passages = overlapping(
                passages,
                tail=lambda text: self._tokenizer.tail(text, self.overlap_tokens),
                fits=lambda text: self.count_input(text) <= self.max_tokens,
            )
        chunks: list[Chunk] = []
        for passage in passages:
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
                    section=passage.section.kind,
                    overlap=passage.overlap,
                )
            )
        return chunks

    def _passages(self, source: SourceDocument) -> Iterator[Passage]:
        """Give what Docling's chunker makes, and every heading it would show only in part."""
        document = source.document
        sections = outline(document, source.title)
        section = Section(OTHER, "", ())
        heading_items: dict[str, DocItem] = {}
        for item, _ in document.iterate_items():
            if isinstance(item, TitleItem | SectionHeaderItem):
                heading_items.setdefault(item.text, item)
        told: set[str] = set()
        for piece in self._chunker.chunk(document):
            if not isinstance(piece, DocChunk):
                continue
            items = tuple(_with_captions(piece.meta.doc_items, document))
            section = sections.get(items[-1].self_ref, section) if items else section
            # An article without a title has an empty one.
            headings = tuple(heading for heading in piece.meta.headings or () if heading.strip())
            context = self._chunker.context(headings)
            for heading in headings:
                if heading not in context and heading not in told:
                    told.add(heading)
                    own = (heading_items[heading],) if heading in heading_items else ()
                    opened = sections.get(own[0].self_ref, section) if own else section
                    text = clean(heading)
                    yield Passage(text, text, (text,), own, opened, is_heading=True)
            text = clean(piece.text)
            is_table = any(item.label in _TABLE_LABELS for item in piece.meta.doc_items)
            if is_table:
                # Docling escapes the bar for Markdown's sake; people and models read the plain sign.
                text = text.replace("&#124;", "|")
            is_heading = not text.strip()
            if is_heading and not (headings and headings[-1] in context):
                continue
            yield Passage(
                text=clean(headings[-1]) if is_heading else text,
                embedding_text=clean("\n".join(part for part in (*context, text) if part.strip())),
                headings=tuple(clean(heading) for heading in headings),
                items=items,
                section=section,
                is_table=is_table,
                is_heading=is_heading,
            )

    def _fitting(self, passages: Iterator[Passage]) -> Iterator[Passage]:
        """Cut what is still too long: shortened headings told in full, and anything Docling's splitter missed."""
        for passage in passages:
            if self._fits(passage.embedding_text):
                yield passage
                continue
            prefix = self._context(passage.headings) if passage.embedding_text != passage.text else ""

            def fits(text: str, prefix: str = prefix) -> bool:
                return self._fits(prefix + text)

            for text in split_to_fit(passage.text, fits):
                yield replace(passage, text=text, embedding_text=prefix + text)

    def _context(self, headings: tuple[str, ...]) -> str:
        """Give what stands above a text, with its line break."""
        return "".join(f"{heading}\n" for heading in self._chunker.context(headings))

    def _fits(self, text: str) -> bool:
        return self.count_input(text) <= self._room


def _rebuild(tokenizer_json: bytes, max_tokens: int, strategy: Strategy, merge_peers: bool, overlap: int) -> Chunker:  # noqa: FBT001 -- called by pickle
    return Chunker(tokenizer_json, max_tokens, strategy=strategy, merge_peers=merge_peers, overlap_tokens=overlap)


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
