"""Write docs/reliability.md: each fault that the tests make, what is expected of medkg then, and what the run saw.

A row is a test with `@pytest.mark.fault(area, fault, expected)`; what it hands to the fixture `seen` is the row's last
cell but one. Both travel in the JUnit file that pytest writes (tests/conftest.py), so nothing is typed into the page by
hand, and a fault that no test makes has no row.

    python tests/reliability_table.py --junit build/junit-python.xml
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HEADER = """\
<!-- Written by `make reliability` from the results of the last test run. Do not edit. -->
# Reliability

What goes wrong on purpose while real processes talk over real sockets, what is expected then, and what the last run
saw. A row is a test; how to add one is in [CONTRIBUTING.md](../CONTRIBUTING.md#tests).

"""


class ResultError(Exception):
    """A result file that cannot be right."""


@dataclass(frozen=True, order=True)
class Row:
    """A fault that a test makes."""

    area: str
    fault: str
    expected: str
    seen: str
    holds: str
    """yes, NO or not run."""
    test: str


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """Read the tests with a fault out of JUnit files of pytest; of one test, the last file's result counts."""
    rows: dict[str, Row] = {}
    for path in paths:
        try:
            document = ET.parse(path)  # noqa: S314 (written by our own test runs)
        except (OSError, ET.ParseError) as error:
            raise ResultError(f"{path}: is no JUnit file: {error}; run the tests first") from error
        for case in document.iter("testcase"):
            for row in _rows(case):
                rows[row.test] = row
    if not rows:
        raise ResultError("no test with a fault has run: run `make test` first")
    faults = sorted(rows.values())
    for one, next_one in pairwise(faults):
        if (one.area, one.fault) == (next_one.area, next_one.fault):
            raise ResultError(f"{one.test} and {next_one.test} make the same fault, {one.fault!r}: tell them apart")
    return faults


def _rows(case: ET.Element) -> Iterator[Row]:
    """Give the row of a test, if it has one."""
    properties = [(found.get("name", ""), found.get("value", "")) for found in case.iter("property")]
    for name, value in properties:
        if name != "fault":
            continue
        area, fault, expected = json.loads(value)
        told = [text for name, text in properties if name == "seen"]
        module = case.get("classname", "").replace(".", "/")
        holds, skipped = "yes", case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            holds, told = "**NO**", told or ["the test failed"]
        elif skipped is not None:
            holds, told = "not run", [skipped.get("message", "skipped")]
        elif not told:
            raise ResultError(
                f"{module}::{case.get('name')}: has a fault and does not tell what it saw; call `seen(...)`"
            )
        yield Row(area, fault, expected, "; ".join(told), holds, f"{module}.py::{case.get('name')}")


def page(rows: list[Row]) -> str:
    """Write the page: one table for each area."""
    lines = []
    areas = sorted({row.area for row in rows})
    for area in areas:
        lines += [f"## {area}", "", "| Fault | Expected | Seen | Holds | Test |", "|---|---|---|---|---|"]
        for row in rows:
            if row.area == area:
                cells = (row.fault, row.expected, row.seen, row.holds, f"`{row.test}`")
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return HEADER + "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run from the command line: 0 when the page is written, 2 when something cannot be right."""
    parser = argparse.ArgumentParser(description="Write docs/reliability.md from test results.")
    parser.add_argument("--junit", type=Path, action="append", required=True, help="a JUnit file of pytest")
    default = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
    parser.add_argument("--output", type=Path, default=default, help="where to write; docs/reliability.md by default")
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.junit)
    except ResultError as error:
        sys.stderr.write(f"reliability: {error}\n")
        return 2
    options.output.write_text(page(rows), encoding="utf-8")
    held = sum(row.holds == "yes" for row in rows)
    sys.stdout.write(f"{options.output}: {held} of {len(rows)} faults end as expected\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
