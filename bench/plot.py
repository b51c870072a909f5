"""Small SVG plots, written as text: ratios with their bars, and rates. No plotting library for two kinds of bars."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, LEFT, RIGHT, LINE, TOP = 940, 400, 70, 26, 46
GOOD, BAD, PLAIN, INK = "#3a7d5c", "#b5533c", "#4f6d8f", "#222"


def bars(title: str, rows: Sequence[dict[str, Any]], *, unit: str) -> str:
    """Horizontal bars of the rows' medians with a whisker over their spread, and a mark at each row's bar.

    Args:
        title: Stands above.
        rows: Rows as in bench/results, with a median; `label` stands beside the bar.
        unit: Stands behind each number.
    """
    height = TOP + LINE * len(rows) + 12
    most = max((max(row["spread"][1], row["bar"] or 0.0) for row in rows), default=1.0) * 1.08 or 1.0

    def x(value: float) -> float:
        return round(LEFT + max(value, 0.0) / most * (WIDTH - LEFT - RIGHT), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"',
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        top = TOP + number * LINE
        middle = top + LINE / 2
        low, high = row["spread"]
        colour = {True: GOOD, False: BAD, None: PLAIN}[row["holds"]]
        parts += [
            f'<text x="{LEFT - 10}" y="{middle + 4}" text-anchor="end">{escape(row["label"])}</text>',
            f'<rect x="{LEFT}" y="{top + 4}" width="{round(x(row["median"]) - LEFT, 1)}" height="{LINE - 8}"',
            f'fill="{colour}" fill-opacity="0.75"/>',
            f'<path d="M{x(low)} {middle}H{x(high)}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{WIDTH - 12}" y="{middle + 4}" text-anchor="end">{row["median"]:g}{escape(unit)}</text>',
        ]
        if row["bar"] is not None:
            mark = x(row["bar"])
            parts.append(f'<path d="M{mark} {top + 1}V{top + LINE - 1}" stroke="#000" stroke-dasharray="3 2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
