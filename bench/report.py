"""Tables: on the terminal, and the page docs/performance.md with its plots."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.measure import LESS_IS_BETTER
from bench.plot import bars

if TYPE_CHECKING:
    from pathlib import Path

MARK = "<!-- what stands below is written by `make bench` -->"


def table(outcome: dict[str, Any]) -> str:
    """A Markdown table of a suite's rows."""
    lines = ["| what | median | spread | peer | bar | holds | note |", "|---|---|---|---|---|---|---|"]
    for row in outcome["rows"]:
        unit = "×" if row["unit"] == "ratio" else f" {row['unit']}"
        median, spread = "not measured", ""
        if row["median"] is not None:
            median = f"{row['median']}{unit}"
            spread = f"{row['spread'][0]} – {row['spread'][1]}"
        sign = "≤" if row["unit"] in LESS_IS_BETTER else "≥"
        bar = "" if row["bar"] is None else f"{sign} {row['bar']}{unit}"
        holds = {True: "yes", False: "**no**", None: ""}[row["holds"]]
        cells = (row["name"], median, spread, row["peer"], bar, holds, row.get("note", ""))
        lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |")
    return "\n".join(lines)


def verdict(outcome: dict[str, Any]) -> str:
    """How many bars hold, and which do not."""
    judged = [row for row in outcome["rows"] if row["bar"] is not None]
    text = f"{sum(row['holds'] is True for row in judged)} of {len(judged)} bars hold"
    for word, state in (("missed", False), ("not measured", None)):
        names = [label(row) for row in judged if row["holds"] is state]
        text += f"; {word}: {' · '.join(names)}" if names else ""
    return text


def label(row: dict[str, Any]) -> str:
    """What was measured, and against whom."""
    peer = row["peer"].partition(",")[0]
    return f"{row['name']} / {peer}" if peer else row["name"]


def plots(outcome: dict[str, Any]) -> dict[str, str]:
    """File name to SVG: the ratios that have bars, and texts per second; a plot without rows is left out."""
    measured = [row for row in outcome["rows"] if row["median"] is not None]
    ratios = [row for row in measured if row["unit"] == "ratio" and row["bar"] is not None]
    rates = [row for row in measured if row["unit"] == "texts/s"]
    for row in ratios:
        row["label"] = label(row)
    for row in rates:
        row["label"] = row["name"].rpartition(" lengths")[0]
    kinds = {
        "ratios": ("Ratio to the peer; dashed: the bar", ratios, "×"),
        "rates": ("Texts per second", rates, ""),
    }
    return {
        f"{outcome['suite']}-{kind}.svg": bars(*parts[:2], unit=parts[2]) for kind, parts in kinds.items() if parts[1]
    }


def draw(root: Path) -> None:
    """Writes the measured part of docs/performance.md and its plots; what a person wrote above the mark stays."""
    page = root / "docs" / "performance.md"
    written = page.read_text("utf-8").partition(MARK)[0] if page.exists() else "# Performance\n\n"
    parts = [written, MARK, "\n"]
    folder = page.parent / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "bench" / "results").glob("*.json")):
        outcome = json.loads(path.read_text("utf-8"))
        machine = outcome["machine"]
        flags = ", ".join(machine["flags"]) or "no vector extensions of note"
        parts.append(f"\n## {outcome['suite']}\n\n{machine['cpu']}, {machine['cores']} cores ({flags}), ")
        parts.append(f"no GPU; commit {outcome['commit']}")
        parts.append(f"; {outcome['mode']}.\n\n" if outcome.get("mode") else ".\n\n")
        for name, versions in outcome.get("versions", {}).items():
            parts.append(f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}\n")
        parts.append(f"\n{verdict(outcome)}.\n\n{table(outcome)}\n")
        for name, svg in plots(outcome).items():
            (folder / name).write_text(svg, "utf-8")
            parts.append(f"\n![{name.removesuffix('.svg').replace('-', ' ')}](plots/{name})\n")
    page.write_text("".join(parts), "utf-8")
