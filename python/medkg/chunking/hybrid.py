"""docling-core's HybridChunker with four rules changed, each because the original loses or spoils text.

- Headings that take more than half of the room are shortened. The original drops every heading of such a chunk.
- Table rows keep every cell. The default serializer writes "row, column = value" and loses the top-left header cell.
- A caption that leaves no room for a row becomes a text of its own. The original breaks the row inside a cell.
- A paragraph with inline markup stays one paragraph. The original puts each run on a line of its own, so that
  subscripts and bold words break sentences apart.

Links and emphasis are written as plain words: a URL costs dozens of tokens and says nothing to the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import semchunk
from docling_core.transforms.chunker.doc_chunk import DocChunk, DocMeta
from docling_core.transforms.chunker.hierarchical_chunker import ChunkingDocSerializer, ChunkingSerializerProvider
from docling_core.transforms.chunker.hybrid_chunker import HybridChunker
from docling_core.transforms.serializer.markdown import MarkdownTableSerializer
from docling_core.types.doc import InlineGroup, TableItem
from pydantic import PrivateAttr

from medkg.chunking.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docling_core.transforms.chunker.base import BaseChunk
    from docling_core.transforms.serializer.base import BaseDocSerializer
    from docling_core.types.doc import DoclingDocument


class PlainTextProvider(ChunkingSerializerProvider):
    """Serializes items as plain text and tables as compact Markdown."""

    def get_serializer(self, doc: DoclingDocument) -> BaseDocSerializer:
        """Give the serializer of one document."""
        serializer = ChunkingDocSerializer(doc=doc, table_serializer=MarkdownTableSerializer())
        changes = {
            # Padding and long rules are one token per dash.
            "compact_tables": True,
            "include_formatting": False,
            "include_hyperlinks": False,
        }
        return serializer.model_copy(update={"params": serializer.params.model_copy(update=changes)})


class BoundedHybridChunker(HybridChunker):
    """HybridChunker whose heading context always leaves half of the room to the text."""

    _contexts: dict[tuple[str, ...], tuple[str, ...]] = PrivateAttr(default_factory=dict)

    @classmethod
    def build(cls, tokenizer: ModelTokenizer, *, merge_peers: bool) -> BoundedHybridChunker:
        """Make a chunker that counts with `tokenizer`."""
        return cls(
            tokenizer=tokenizer,
            merge_peers=merge_peers,
            serializer_provider=PlainTextProvider(),
            # Or a section without text of its own would vanish.
            always_emit_headings=True,
        )

    def context(self, headings: Sequence[str]) -> tuple[str, ...]:
        """Give the headings that go above a text, outermost first.

        When they take more than half of the room, outer ones are left out first, since inner ones say more about the
        text; an innermost heading that alone is too long is cut.
        """
        key = tuple(headings)
        if key not in self._contexts:
            self._contexts[key] = self._shorten(key)
        return self._contexts[key]

    def forget(self) -> None:
        """Drop what is remembered of the documents so far: their headings would pile up."""
        self._contexts.clear()

    def contextualize(self, chunk: BaseChunk) -> str:
        """Give the text that is embedded: the chunk under its headings."""
        headings = chunk.meta.headings if isinstance(chunk.meta, DocMeta) else None
        return self.delim.join(part for part in (*self.context(headings or ()), chunk.text) if part)

    def segment(self, doc_chunk: DocChunk, available_length: int, doc_serializer: BaseDocSerializer) -> list[str]:
        """Cut an oversized text; tables by rows with their header, as the original does."""
        if len(doc_chunk.meta.doc_items) == 1 and isinstance(doc_chunk.meta.doc_items[0], TableItem):
            caption, table = self._caption_in_the_way(doc_chunk.text, available_length, doc_serializer)
            whole = doc_chunk.model_copy(update={"text": table})
            above = self._plain_pieces(caption, available_length) if caption else []
            return [*above, *super().segment(whole, available_length, doc_serializer)]
        return self._plain_pieces(doc_chunk.text, available_length)

    def _plain_pieces(self, text: str, available_length: int) -> list[str]:
        # Not through the original: it remembers the count of every text for as long as the process lives.
        pieces = semchunk.chunk(text, available_length, self.tokenizer.count_tokens, memoize=False, offsets=False)
        return [piece for piece in pieces if isinstance(piece, str)]

    def _caption_in_the_way(
        self, text: str, available_length: int, doc_serializer: BaseDocSerializer
    ) -> tuple[str, str]:
        """Give caption and table apart where a row does not fit beneath both, else no caption and the whole text."""
        if not isinstance(doc_serializer, ChunkingDocSerializer):
            return "", text
        header, rows = doc_serializer.table_serializer.get_header_and_body_lines(table_text=text)
        table = "".join([*header, *rows])
        caption = text.removesuffix(table)
        above = caption + "".join(header)
        if not header or all(self.tokenizer.count_tokens(above + row) <= available_length for row in rows):
            return "", text
        return caption.strip(), table

    def _split_by_doc_items(self, doc_chunk: DocChunk, doc_serializer: BaseDocSerializer) -> list[DocChunk]:
        items = doc_chunk.meta.doc_items
        if self._count_chunk_tokens(doc_chunk) <= self.max_tokens:
            return [doc_chunk]
        tables = [item for item in items if isinstance(item, TableItem)]
        if len(tables) == 1 and len(items) > 1:
            # The others are its caption, which the table's text holds already.
            meta = DocMeta(doc_items=[*tables], headings=doc_chunk.meta.headings, origin=doc_chunk.meta.origin)
            return [DocChunk(text=doc_chunk.text, meta=meta)]
        if isinstance(doc_serializer, ChunkingDocSerializer) and all(
            item.parent is not None and isinstance(item.parent.resolve(doc_serializer.doc), InlineGroup)
            for item in items
        ):
            return [doc_chunk]
        return super()._split_by_doc_items(doc_chunk, doc_serializer)

    def _shorten(self, headings: tuple[str, ...]) -> tuple[str, ...]:
        room = self.max_tokens // 2
        for first in range(len(headings)):
            if self.tokenizer.count_tokens(self.delim.join(headings[first:])) <= room:
                return headings[first:]
        if not headings or not isinstance(self.tokenizer, ModelTokenizer):
            return ()
        cut = self.tokenizer.head(headings[-1], room)
        return (cut,) if cut else ()
