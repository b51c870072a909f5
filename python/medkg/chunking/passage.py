"""Passages: pieces of a document on their way to becoming chunks, and how sections gather and overlap them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from docling_core.types.doc import DocItem

    from medkg.chunking.sections import Section


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        text: what a reader is shown.
        embedding_text: the text under its headings.
        headings: every heading above it, outermost first.
        items: the elements it is made of.
        section: the section it stands in.
        is_table: whether it is a table or a part of one.
        is_heading: whether it is nothing but its innermost heading, which has no text of its own.
        overlap: characters at the beginning of `text` that repeat the end of the passage before.
    """

    text: str
    embedding_text: str
    headings: tuple[str, ...]
    items: tuple[DocItem, ...]
    section: Section
    is_table: bool = False
    is_heading: bool = False
    overlap: int = 0


def gather_sections(
    passages: Iterable[Passage],
    *,
    context: Callable[[tuple[str, ...]], str],
    fits: Callable[[str], bool],
) -> Iterator[Passage]:
    """Put neighbours of one section together while they fit, and never two sections.

    Sub-headings become lines of the text, so that a chunk of several reads as the section does.

    Args:
        passages: in reading order.
        context: gives what stands above a text with those headings, with its line break.
        fits: whether the model takes a text.
    """
    group: list[Passage] = []
    made: Passage | None = None
    goes_on = False
    for passage in passages:
        if group and passage.section.ref == group[0].section.ref:
            candidate = _together([*group, passage], context)
            # The rest of an element that was cut stays under its own headings: its sub-heading would interrupt it.
            if fits(candidate.embedding_text) and not (goes_on and passage.headings != group[0].headings):
                group.append(passage)
                made = candidate
                continue
        if made is not None:
            yield made
        goes_on = bool(group) and passage.items[-1:] == group[-1].items[-1:]
        group, made = [passage], passage
    if made is not None:
        yield made


def overlapping(
    passages: Iterable[Passage], *, tail: Callable[[str], str], fits: Callable[[str], bool]
) -> Iterator[Passage]:
    """Begin each passage with the end of the one before, where both are running text of one section.

    Args:
        passages: in reading order.
        tail: gives the end of a text that is to be repeated.
        fits: whether the model takes a text.
    """
    before: Passage | None = None
    for passage in passages:
        whole = passage
        if before is not None and _continues(before, passage):
            repeated = tail(before.text)
            above = passage.embedding_text.removesuffix(passage.text)
            text = f"{repeated}\n{passage.text}"
            if repeated and fits(above + text):
                whole = replace(passage, text=text, embedding_text=above + text, overlap=len(repeated) + 1)
        yield whole
        before = passage


def _continues(before: Passage, passage: Passage) -> bool:
    if before.is_table or passage.is_table or before.is_heading or passage.is_heading:
        return False
    return before.section.ref == passage.section.ref and before.headings == passage.headings


def _together(group: Sequence[Passage], context: Callable[[tuple[str, ...]], str]) -> Passage:
    first, last = group[0], group[-1]
    headings = first.headings
    for passage in group[1:]:
        headings = _shared(headings, passage.headings)
    # In a document whose headings are all on one level, the section's own heading is above the others only in sense.
    if len(headings) < len(first.section.headings):
        headings = first.section.headings
    lines: list[str] = []
    before: tuple[str, ...] = ()
    for passage in group:
        below = passage.headings[len(_shared(headings, passage.headings)) :]
        lines.extend(below[len(_shared(before, below)) :])
        before = below
        if not passage.is_heading:
            lines.append(passage.text)
    text = "\n".join(lines) or last.text
    items = {item.self_ref: item for passage in group for item in passage.items}
    return Passage(
        text=text,
        embedding_text=context(headings) + text,
        headings=headings,
        items=tuple(items.values()),
        section=first.section,
        is_table=any(passage.is_table for passage in group),
        is_heading=all(passage.is_heading for passage in group) and not lines,
    )


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Give the headings with which both begin."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]
