"""Pictures of a materialization: a histogram, bars, a heat map.

They are SVG, drawn here in a few lines and carried inside the Markdown: no plotting library comes with the wheel for
them.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_BARS = 20
_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 28, 40
_INK, _FILL = "#334155", "#0f766e"
_CELL, _LABEL_CHARS = 30, 28


def histogram(values: Sequence[int], *, title: str, unit: str, limit: int | None = None) -> dg.MarkdownMetadataValue:
    """A histogram of whole numbers from 0, as a picture.

    Args:
        values: What to count.
        title: Stands above it.
        unit: Stands below the horizontal axis.
        limit: Drawn as a dashed line: the most a value may be.
    """
    top = max([limit or 1, *values])
    width = max(1, -(-top // _BARS))
    counts = [0] * (top // width + 1)
    for value in values:
        counts[value // width] += 1
    highest = max([1, *counts])
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bar = inner_w / len(counts)
    base = _TOP + inner_h
    parts = [
        f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{base}" stroke="{_INK}"/>',
        _text(_LEFT - 6, _TOP + 4, str(highest), anchor="end"),
        _text(_LEFT - 6, base, "0", anchor="end"),
        _text(_LEFT, base + 16, "0"),
        _text(_WIDTH - _RIGHT, base + 16, str(len(counts) * width), anchor="end"),
        _text(_LEFT + inner_w / 2, base + 32, unit, anchor="middle"),
    ]
    for position, count in enumerate(counts):
        height = inner_h * count / highest
        parts.append(
            f'<rect x="{_LEFT + position * bar + 1:.1f}" y="{base - height:.1f}" width="{max(bar - 2, 1):.1f}"'
            f' height="{height:.1f}" fill="{_FILL}"><title>{position * width} to {(position + 1) * width - 1}:'
            f" {count}</title></rect>"
        )
    if limit is not None:
        x = _LEFT + bar * limit / width
        parts.append(
            f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}" stroke="{_INK}" stroke-dasharray="4 3"/>'
            + _text(x - 4, _TOP + 10, f"limit {limit}", anchor="end")
        )
    return _picture(title, _WIDTH, _HEIGHT, parts)


def bars(values: Mapping[str, float], *, title: str, top: float) -> dg.MarkdownMetadataValue:
    """Named values as horizontal bars, each with its number.

    Args:
        values: From 0 to `top`.
        title: Stands above them.
        top: What fills the width.
    """
    left = 16 + 7 * max([1, *(len(name) for name in values)])
    inner = _WIDTH - left - _RIGHT - 48
    parts = []
    for row, (name, value) in enumerate(values.items()):
        y = _TOP + row * _CELL
        width = inner * min(1.0, max(0.0, value / top))
        parts.append(_text(left - 8, y + _CELL / 2 + 2, name, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{_CELL - 8}" fill="{_FILL}"/>')
        parts.append(_text(left + width + 6, y + _CELL / 2 + 2, f"{value:.3g}"))
    return _picture(title, _WIDTH, _TOP + _CELL * len(values), parts)


def heatmap(names: Sequence[str], matrix: Sequence[Sequence[float]], *, title: str) -> dg.MarkdownMetadataValue:
    """A square matrix of values from 0 to 1 as a picture, darker for more.

    Args:
        names: Names of rows and columns.
        matrix: Values, row by row; shape (names, names).
        title: Stands above it.
    """
    left = 8 + 7 * min(_LABEL_CHARS, max([1, *(len(name) for name in names)])) + 24
    width, height = left + _CELL * len(names) + _RIGHT, _TOP + _CELL * len(names) + 24
    parts = []
    for row, (name, values) in enumerate(zip(names, matrix, strict=True)):
        y = _TOP + row * _CELL
        label = name if len(name) <= _LABEL_CHARS else f"{name[: _LABEL_CHARS - 1]}…"
        parts.append(_text(left - 8, y + _CELL / 2 + 4, f"{label} {row + 1}", anchor="end"))
        parts.append(
            _text(left + row * _CELL + _CELL / 2, _TOP + _CELL * len(names) + 16, str(row + 1), anchor="middle")
        )
        for column, value in enumerate(values):
            shade = min(1.0, max(0.0, value))
            ink = "#ffffff" if shade > 0.5 else _INK  # noqa: PLR2004 -- half-way between light and dark
            x = left + column * _CELL
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" fill="{_FILL}"'
                f' fill-opacity="{0.05 + 0.95 * shade:.2f}"/>'
            )
            parts.append(_text(x + _CELL / 2, y + _CELL / 2 + 4, f"{value:.2f}".lstrip("0"), anchor="middle", fill=ink))
    return _picture(title, width, height, parts)


def _picture(title: str, width: int, height: int, parts: Iterable[str]) -> dg.MarkdownMetadataValue:
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="sans-serif" font-size="11"><rect width="{width}" height="{height}" fill="#ffffff"/>'
        f"{_text(8, 17, title, fill=_INK, size=13)}{''.join(parts)}</svg>"
    )
    return dg.MetadataValue.md(f"![{title}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})")


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = _INK, size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">{escape(text)}</text>'
    )
