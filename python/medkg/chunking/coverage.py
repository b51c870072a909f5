"""Did every word of a document reach its chunks? Checked for each document, since the splitters are not ours.

Compared without whitespace, which splitting is free to change. The body of the document counts: not page headers and
footers, and not text inside pictures, which Docling keeps apart from the body on purpose.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medkg.chunking.errors import chunking_extra
from medkg.chunking.text import clean

with chunking_extra():
    from docling_core.types.doc import TableItem, TextItem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from docling_core.types.doc import DoclingDocument

    from medkg.chunking.chunk import Chunk

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


def body_texts(document: DoclingDocument) -> Iterator[tuple[str, str, bool]]:
    """Give (item ref, text, whether it is a table cell) for every text in the body, in reading order."""
    for item, _ in document.iterate_items():
        if isinstance(item, TextItem):
            yield item.self_ref, item.text, False
        elif isinstance(item, TableItem):
            for cell in item.data.table_cells:
                yield item.self_ref, cell.text, True


def uncovered_items(document: DoclingDocument, chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """List the items whose text is not whole in the chunks, in reading order; empty means nothing was lost."""
    everything = _squeeze(chunk.text[chunk.overlap :] for chunk in chunks)
    headings = {_squeeze([heading]) for chunk in chunks for heading in chunk.headings}
    words: set[str] | None = None
    missing: dict[str, None] = {}
    cursor = 0
    for ref, text, is_cell in body_texts(document):
        wanted = _squeeze([clean(text)])
        if not wanted or wanted in headings:
            continue
        # Reading order makes the next text start near the last one: look ahead first, then everywhere.
        found = everything.find(wanted, cursor)
        if found < 0:
            found = everything.find(wanted)
        if found >= 0:
            cursor = found
            continue
        if is_cell:
            # A cell longer than a chunk is cut, and the table's header stands between its parts.
            if words is None:
                words = {word for chunk in chunks for word in _WORD.findall(chunk.text)}
            if words.issuperset(_WORD.findall(clean(text))):
                continue
        missing[ref] = None
    return tuple(missing)


def _squeeze(parts: Iterable[str]) -> str:
    return _SPACE.sub("", "".join(parts))
