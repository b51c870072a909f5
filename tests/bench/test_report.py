"""What a reader of the bench's page sees: tables that say what was not measured, and plots that are well-formed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from bench.measure import missing, row
from bench.report import MARK, draw, plots, table, verdict

if TYPE_CHECKING:
    from pathlib import Path

    from bench.measure import Row


def outcome(*rows: Row) -> dict[str, object]:
    return {
        "suite": "engine",
        "machine": {"cpu": "some CPU", "cores": 2, "flags": [], "gpu": None},
        "commit": "abc",
        "mode": "quick form",
        "versions": {"ONNX Runtime": {"onnxruntime": "1.0"}},
        "rows": [entry.as_json() for entry in rows],
    }


ROWS = (
    row("throughput <fp32>", [1.2, 1.4, 1.6], "ratio", peer="peer, batch 8", bar=1.3),
    row("latency", [2.5], "ms", bar=2.0),
    row("ours, mixed lengths, concurrency 1", [80.0], "texts/s"),
    missing("bf16", "no | such\ninstruction", peer="peer", bar=2.2),
)


def test_a_table_tells_what_holds_what_does_not_and_what_is_not_known() -> None:
    lines = table(outcome(*ROWS)).splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert "| 1.4× | 1.2 – 1.6 | peer, batch 8 | ≥ 1.3× | yes |" in lines[2]
    assert "≤ 2.0 ms | **no** |" in lines[3]
    assert "| not measured |" in lines[5]
    assert lines[5].endswith("| no / such instruction |")


def test_the_verdict_counts_bars_and_names_the_others() -> None:
    assert verdict(outcome(*ROWS)) == "1 of 3 bars hold; missed: latency; not measured: bf16 / peer"


def test_plots_are_xml_and_hold_every_row_of_theirs() -> None:
    drawn = plots(outcome(*ROWS))
    assert set(drawn) == {"engine-ratios.svg", "engine-rates.svg"}
    texts = ["".join(ET.fromstring(svg).itertext()) for svg in drawn.values()]  # noqa: S314 - our own text
    assert "throughput <fp32> / peer" in texts[0]
    assert "1.4×" in texts[0]
    assert "ours, mixed" in texts[1]


def test_the_page_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "bench" / "results" / "engine.json").write_text(json.dumps(outcome(*ROWS)))
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "performance.md"
    page.write_text(f"# By hand\n\n{MARK}\nold table\n")
    draw(tmp_path)
    first = page.read_text()
    draw(tmp_path)
    assert page.read_text() == first
    assert first.startswith(f"# By hand\n\n{MARK}\n")
    assert "old table" not in first
    assert "onnxruntime 1.0" in first
    for name in ("engine-ratios.svg", "engine-rates.svg"):
        assert f"(plots/{name})" in first
        assert (tmp_path / "docs" / "plots" / name).exists()
