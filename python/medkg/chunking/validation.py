"""Are these chunks what the document says, and what the model takes? Each finding names the chunk and what to do.

Checked: every text of the body is in the chunks (`coverage`); no text stands in two of them beyond the overlap that was
asked for (`overlap`); none is empty or longer than the model takes, and each count is right (`limit`); they follow the
document, numbered without gaps, under ids of their own (`order`); rows and headers of tables are whole wherever they
fit (`table`); no chunk mixes two sections (`section`).

Text is compared by its letters and digits: chunkers are free in whitespace, list marks and the bars of tables.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medkg.chunking.coverage import uncovered_items
from medkg.chunking.errors import ChunkValidationError, chunking_extra
from medkg.chunking.report import ChunkProblem
from medkg.chunking.sections import outline
from medkg.chunking.text import clean

with chunking_extra():
    from docling_core.types.doc import FloatingItem, InlineGroup, SectionHeaderItem, TableItem, TextItem, TitleItem

    from medkg.chunking.hybrid import PlainTextProvider

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from docling_core.types.doc import DoclingDocument

    from medkg.chunking.chunk import Chunk
    from medkg.chunking.chunker import Chunker
    from medkg.chunking.loading import SourceDocument

_NO_WORD = re.compile(r"[\W_]+")
#: Letters by which the beginning and the end of a cut element are found again in a chunk.
_ANCHOR = 24


def check_chunks(source: SourceDocument, chunks: Sequence[Chunk], chunker: Chunker) -> tuple[ChunkProblem, ...]:
    """Compare the chunks of one document with it.

    Args:
        source: the document.
        chunks: all its chunks, in order.
        chunker: tells the limit, the overlap that was asked for, and how tokens are counted.
    """
    document = source.document
    return (
        *_order(document, chunks, source.document_id),
        *_limit(chunks, chunker),
        *_coverage(document, chunks),
        *_overlap(document, chunks, chunker),
        *_tables(document, chunks, chunker),
        *_sections(source, chunks),
    )


def require_valid(source: SourceDocument, chunks: Sequence[Chunk], chunker: Chunker) -> None:
    """Check the chunks of one document.

    Raises:
        ChunkValidationError: something is wrong; has every problem.
    """
    problems = check_chunks(source, chunks, chunker)
    if problems:
        raise ChunkValidationError(source.path, tuple(str(problem) for problem in problems))


def _order(document: DoclingDocument, chunks: Sequence[Chunk], document_id: str) -> Iterator[ChunkProblem]:
    place = {item.self_ref: number for number, (item, _) in enumerate(document.iterate_items())}
    # Captions may stand anywhere, and a heading too long to stand above its texts is told once, before them.
    anywhere = _captions(document) | {
        item.self_ref for item, _ in document.iterate_items() if isinstance(item, TitleItem | SectionHeaderItem)
    }
    seen: set[str] = set()
    latest = -1
    for number, chunk in enumerate(chunks):
        again = "Hand over all chunks of the document, each once, as the chunker gave them"
        if chunk.ordinal != number:
            yield ChunkProblem("order", chunk.chunk_id, f"has ordinal {chunk.ordinal} at place {number}", again)
        if chunk.chunk_id in seen:
            yield ChunkProblem("order", chunk.chunk_id, "is there twice", again)
        seen.add(chunk.chunk_id)
        if chunk.document_id != document_id:
            problem = f"is of document {chunk.document_id}, not {document_id}"
            yield ChunkProblem("order", chunk.chunk_id, problem, "Check each document's chunks on their own")
        unknown = [ref for ref in chunk.item_refs if ref not in place]
        if unknown:
            problem = f"names {unknown[0]}, which the document's body does not have"
            yield ChunkProblem("order", chunk.chunk_id, problem, "Chunk the document again: it has changed since")
        placed = [ref for ref in chunk.item_refs if ref in place and ref not in anywhere]
        if placed and place[placed[-1]] < latest:
            yield ChunkProblem("order", chunk.chunk_id, f"goes back to {placed[-1]}", again)
        latest = max([latest, *(place[ref] for ref in placed)])


def _limit(chunks: Sequence[Chunk], chunker: Chunker) -> Iterator[ChunkProblem]:
    for chunk in chunks:
        tokens = chunker.count_input(chunk.embedding_text)
        if not chunk.text.strip():
            yield ChunkProblem("limit", chunk.chunk_id, "has no text", "Leave it out")
        if tokens > chunker.max_tokens:
            problem = f"has {tokens} tokens, more than the limit of {chunker.max_tokens}"
            yield ChunkProblem("limit", chunk.chunk_id, problem, "Chunk the document with that limit")
        if tokens != chunk.token_count:
            problem = f"says it has {chunk.token_count} tokens, and has {tokens}"
            yield ChunkProblem("limit", chunk.chunk_id, problem, "Chunk it with the tokenizer of the model in use")


def _coverage(document: DoclingDocument, chunks: Sequence[Chunk]) -> Iterator[ChunkProblem]:
    lost = set(uncovered_items(document, chunks))
    if not lost:
        return
    holder = {ref: chunk.chunk_id for chunk in reversed(chunks) for ref in chunk.item_refs}
    before = chunks[0].chunk_id if chunks else "no chunk"
    for item, _ in document.iterate_items():
        before = holder.get(item.self_ref, before)
        if item.self_ref in lost:
            problem = f"the text of {item.self_ref} is not whole here or in its neighbours"
            yield ChunkProblem("coverage", before, problem, "Put the missing chunk back, or chunk the document again")


def _overlap(document: DoclingDocument, chunks: Sequence[Chunk], chunker: Chunker) -> Iterator[ChunkProblem]:
    """Find overlap that nobody asked for, or that is told wrongly, and texts that stand in two chunks beside it."""
    for number, chunk in enumerate(chunks):
        if chunk.overlap and not chunker.overlap_tokens:
            problem = f"repeats {chunk.overlap} characters of the chunk before"
            yield ChunkProblem("overlap", chunk.chunk_id, problem, "Ask for it with overlap_tokens, or chunk again")
        elif chunk.overlap:
            repeated = chunk.text[: chunk.overlap].strip()
            if number == 0 or not chunks[number - 1].text.endswith(repeated):
                problem = "says it begins with the end of the chunk before, and does not"
                yield ChunkProblem("overlap", chunk.chunk_id, problem, "Chunk the document again")
    own = [_letters(chunk.text[chunk.overlap :]) for chunk in chunks]
    where: dict[str, set[int]] = {}
    for number, chunk in enumerate(chunks):
        for ref in chunk.item_refs:
            where.setdefault(ref, set()).add(number)
    for refs, text in _runs(document):
        reached = 0
        for number in sorted(set().union(*(where.get(ref, ()) for ref in refs))):
            start, end = _part(text, own[number], reached) or (reached, reached)
            if start < reached:
                problem = f"repeats {min(end, reached) - start} letters of {refs[0]} that an earlier chunk has"
                yield ChunkProblem("overlap", chunks[number].chunk_id, problem, "Remove one of the two, or chunk again")
            reached = max(reached, end)


def _runs(document: DoclingDocument) -> Iterator[tuple[tuple[str, ...], str]]:
    """Give each running text of the body with its elements; the runs of one paragraph together."""
    captions = _captions(document)
    joined: dict[str, tuple[list[str], list[str]]] = {}
    for item, _ in document.iterate_items():
        if not isinstance(item, TextItem) or isinstance(item, TitleItem | SectionHeaderItem):
            continue
        if item.self_ref in captions:
            continue
        parent = item.parent.resolve(document) if item.parent is not None else None
        key = parent.self_ref if isinstance(parent, InlineGroup) else item.self_ref
        refs, texts = joined.setdefault(key, ([], []))
        refs.append(item.self_ref)
        texts.append(_letters(clean(item.text)))
    for refs, texts in joined.values():
        if text := "".join(texts):
            yield tuple(refs), text


def _part(text: str, chunk: str, reached: int) -> tuple[int, int] | None:
    """Give the part of an element's text that a chunk has: where it begins and ends in the text."""
    if text in chunk:
        return 0, len(text)
    if len(chunk) >= _ANCHOR and chunk in text:
        start = text.find(chunk, reached)
        start = text.find(chunk) if start < 0 else start
        return start, start + len(chunk)
    if len(text) < _ANCHOR:
        return None
    at = chunk.find(text[-_ANCHOR:])
    if at >= 0:
        length = _ANCHOR
        while length < len(text) and at > 0 and text[-length - 1] == chunk[at - 1]:
            length, at = length + 1, at - 1
        return len(text) - length, len(text)
    at = chunk.find(text[:_ANCHOR])
    if at >= 0:
        length = _ANCHOR
        while at + length < len(chunk) and text[length] == chunk[at + length]:
            length += 1
        # An element that is cut here ends with the chunk; otherwise another one begins with the same words.
        return (0, length) if at + length == len(chunk) else None
    return None


def _tables(document: DoclingDocument, chunks: Sequence[Chunk], chunker: Chunker) -> Iterator[ChunkProblem]:
    serializer = PlainTextProvider().get_serializer(document)
    for item, _ in document.iterate_items():
        if not isinstance(item, TableItem):
            continue
        parts = [chunk for chunk in chunks if item.self_ref in chunk.item_refs]
        if not parts:
            continue  # coverage tells it
        lines = clean(serializer.serialize(item=item).text).replace("&#124;", "|").splitlines()
        rule = next((at for at, line in enumerate(lines) if line and not set(line) - set("|-: ")), 0)
        if not rule:
            continue
        header, rows = _letters(lines[rule - 1]), lines[rule + 1 :]
        above = parts[0].embedding_text.removesuffix(parts[0].text)
        top = above + "\n".join(lines[rule - 1 : rule + 1])
        # Where a row does not fit under its header, the table is cut by columns: then coverage alone counts.
        if any(chunker.count_input(f"{top}\n{row}") + chunker.overlap_tokens > chunker.max_tokens for row in rows):
            continue
        inside = [{_letters(line) for line in part.text.splitlines()} for part in parts]
        for row in filter(_letters, rows):
            holders = [part for part, own in zip(parts, inside, strict=True) if _letters(row) in own]
            if not holders:
                problem = f"a row of the table {item.self_ref} is not whole in any chunk: {row[:60]!r}"
                yield ChunkProblem("table", parts[0].chunk_id, problem, "Cut tables between rows, or chunk again")
            for part in holders:
                if header and header not in inside[parts.index(part)]:
                    problem = f"has rows of the table {item.self_ref} without its header"
                    yield ChunkProblem("table", part.chunk_id, problem, "Repeat the header, or chunk again")
                    break


def _sections(source: SourceDocument, chunks: Sequence[Chunk]) -> Iterator[ChunkProblem]:
    sections = outline(source.document, source.title)
    for chunk in chunks:
        found = {
            sections[ref].ref: sections[ref].kind
            for ref in chunk.item_refs
            if ref in sections and (ref != sections[ref].ref or len(chunk.item_refs) == 1)
        }
        if len(found) > 1:
            problem = f"mixes {len(found)} sections ({', '.join(found.values())})"
            yield ChunkProblem("section", chunk.chunk_id, problem, "Cut it where the sections meet, or chunk again")
        elif found and chunk.section not in found.values():
            problem = f"says its section is {chunk.section!r}, and it is {', '.join(found.values())!r}"
            yield ChunkProblem("section", chunk.chunk_id, problem, "Chunk the document again")


def _captions(document: DoclingDocument) -> set[str]:
    floating = [item for item, _ in document.iterate_items() if isinstance(item, FloatingItem)]
    return {reference.cref for item in floating for reference in (*item.captions, *item.footnotes)}


def _letters(text: str) -> str:
    return _NO_WORD.sub("", text)
