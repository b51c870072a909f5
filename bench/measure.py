"""Interleaved measurements, and the rows that come out of them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LESS_IS_BETTER = frozenset({"us", "ms", "s", "MiB", "MiB/min", "times", "% of the time"})
"""Units whose bar is the most that is allowed. For all others it is the least."""


class CandidateError(RuntimeError):
    """A candidate could not be measured; the message says why, and stands in the results in its place."""


@dataclass(frozen=True)
class Row:
    """One comparison. `value` and `median` are ratios to `peer` unless `unit` says otherwise; None: not measured."""

    name: str
    value: float | None
    unit: str
    peer: str
    median: float | None
    spread: tuple[float, float] | None
    bar: float | None
    holds: bool | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The row as it stands in bench/results; `note` only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "note" or value}


def interleave(
    runs: Mapping[str, Callable[[], float]],
    *,
    repetitions: int,
    say: Callable[[str], None],
    warm_up: bool = True,
    failures: dict[str, str] | None = None,
) -> dict[str, list[float]]:
    """Runs every candidate once a round, so that a busy moment of the machine hits all of them.

    Each round begins with another candidate, so that none always has the same one before it.

    Args:
        runs: Name to a run that returns its rate (larger is better).
        repetitions: Rounds.
        say: Progress.
        warm_up: One more round before, not counted.
        failures: Gets name and reason of a candidate that fails; it is left out from then on. If None, it raises.

    Returns:
        Name to one rate per round, of those that did not fail.
    """
    names = list(runs)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(0 if warm_up else 1, repetitions + 1):
        start = repetition % len(names) if names else 0
        for name in names[start:] + names[:start]:
            if name not in rates:
                continue
            try:
                rate = runs[name]()
            except CandidateError as error:
                if failures is None:
                    raise
                failures[name] = str(error)
                del rates[name]
                say(f"  {name} failed: {error}")
                continue
            if repetition > 0:
                rates[name].append(rate)
                say(f"  round {repetition}/{repetitions} {name}: {short(rate)}/s")
    return rates


def short(number: float) -> str:
    """A number with four digits and G or M for large ones."""
    for size, letter in ((1e9, " G"), (1e6, " M")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:,.1f}" if abs(number) >= 10 else f"{number:.3g}"


def judge(median: float, unit: str, bar: float | None) -> bool | None:
    """Whether a bar holds; None without one."""
    if bar is None:
        return None
    return median <= bar if unit in LESS_IS_BETTER else median >= bar


def row(
    name: str, values: Sequence[float], unit: str, *, peer: str = "", bar: float | None = None, note: str = ""
) -> Row:
    """Median, smallest and largest of one value per round, three decimals kept, and whether the bar holds."""
    median = statistics.median(values)
    spread = (round(min(values), 3), round(max(values), 3))
    return Row(name, round(median, 3), unit, peer, round(median, 3), spread, bar, judge(median, unit, bar), note)


def ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], *, peer: str, bar: float | None = None, note: str = ""
) -> Row:
    """Our rate over a peer's, round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return row(name, ratios, "ratio", peer=peer, bar=bar, note=note)


def rate(name: str, rates: Sequence[float], unit: str) -> Row:
    """A rate by itself, for the reader's sense of scale; it holds on this machine only."""
    return row(name, rates, unit)


def missing(name: str, reason: str, *, unit: str = "ratio", peer: str = "", bar: float | None = None) -> Row:
    """A row that says why there is no value."""
    return Row(name, None, unit, peer, None, None, bar, None, reason)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share (0 to 1) of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-round(share * len(ordered) * 1e6) // 1_000_000)
    return ordered[max(0, rank - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope of values over times, and its standard error. Needs three points at different times."""
    line = statistics.linear_regression(times, values)
    mean = statistics.fmean(times)
    wide = sum((time - mean) ** 2 for time in times)
    left = sum((value - line.intercept - line.slope * time) ** 2 for time, value in zip(times, values, strict=True))
    return line.slope, (left / (len(times) - 2) / wide) ** 0.5
