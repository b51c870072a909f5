"""Small truths about text that loading, chunking and checking must agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def clean(text: str) -> str:
    """Replace NUL by U+FFFD, as HTML and CommonMark do: stores and C strings end at it."""
    return text.replace("\x00", "\ufffd")


def split_to_fit(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut `text` into pieces that fit, at the whitespace nearest the middle when there is any.

    Nothing but the whitespace at a cut is dropped. A single character that does not fit raises `ValueError`.
    """
    text = text.strip()
    if not text:
        return []
    if fits(text):
        return [text]
    if len(text) == 1:
        message = f"the character {text!r} alone has more tokens than the model takes"
        raise ValueError(message)
    middle = len(text) // 2
    before = max(text.rfind(mark, 0, middle) for mark in " \n\t")
    after = min((at for mark in " \n\t" if (at := text.find(mark, middle)) >= 0), default=-1)
    if before < 1 and after < 0:
        cut = middle
    elif after < 0 or (before > 0 and middle - before <= after - middle):
        cut = before
    else:
        cut = after
    return split_to_fit(text[:cut], fits) + split_to_fit(text[cut:], fits)
