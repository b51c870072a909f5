"""Texts per second: every candidate at its own best setting, then all of them in turns, then ratios."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.measure import CandidateError, Row, interleave, missing, rate, ratio, short

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

REST = 0.25
"""Seconds before each run: threads of the candidate before it stop spinning."""


@dataclass(frozen=True)
class Candidate:
    """Something that makes vectors.

    Attributes:
        name: As it stands in the tables.
        settings: Setting (batch size, concurrency) to a function that gives the seconds for some texts.
        all_settings: Measure all settings in every round, not the best one only.
    """

    name: str
    settings: Mapping[str, Callable[[Sequence[str]], float]]
    all_settings: bool = False


@dataclass
class Field:
    """Who takes part, and why others do not.

    Attributes:
        candidates: By their names.
        failures: Name to reason.
    """

    candidates: dict[str, Candidate] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def at_rest(embed: Callable[[Sequence[str]], float], texts: Sequence[str]) -> float:
    """Texts per second after a short rest."""
    time.sleep(REST)
    return len(texts) / embed(texts)


def tune(
    candidate: Candidate, sample: Sequence[str], passes: int, failures: dict[str, str], say: Callable[[str], None]
) -> dict[str, float]:
    """Setting to its best rate over a sample, fastest first; empty if the candidate failed."""
    found: dict[str, float] = {}
    try:
        for setting, embed in candidate.settings.items():
            embed(sample[:: max(1, len(sample) // 32)])
            found[setting] = max(at_rest(embed, sample) for _ in range(passes))
    except CandidateError as error:
        failures[candidate.name] = str(error)
        say(f"  {candidate.name} failed: {error}")
        return {}
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
    say(f"  {candidate.name}: " + ", ".join(f"{setting} {short(value)}/s" for setting, value in ordered.items()))
    return ordered


@dataclass(frozen=True)
class Rates:
    """What came out of the rounds over one set of texts.

    Attributes:
        kind: The set.
        texts: How many.
        by_setting: Candidate, then setting, to one rate per round. The first setting is the one that tuning chose.
        extra: Further runs (FLOP/s of a matrix product) of the same rounds.
        failures: Name to reason.
    """

    kind: str
    texts: int
    by_setting: dict[str, dict[str, list[float]]]
    extra: dict[str, list[float]]
    failures: dict[str, str]

    def best(self, name: str) -> tuple[str, list[float]]:
        """The setting that tuning chose for a candidate, and its rates; the same rule for us and for peers.

        Raises:
            CandidateError: It took no part; the message says why.
        """
        settings = self.by_setting.get(name)
        if not settings:
            raise CandidateError(self.failures.get(name, "it took no part"))
        return next(iter(settings.items()))

    def fastest(self, names: Sequence[str]) -> tuple[str, str, list[float]]:
        """The fastest of some candidates: name, setting, rates.

        Raises:
            CandidateError: None of them took part.
        """
        present = [(name, *self.best(name)) for name in names if name in self.by_setting]
        if not present:
            raise CandidateError("none of the peers took part")
        return max(present, key=lambda entry: statistics.median(entry[2]))


def compare(
    kind: str,
    texts: Sequence[str],
    field_: Field,
    *,
    rounds: int,
    passes: int,
    extra: Mapping[str, Callable[[], float]],
    say: Callable[[str], None],
) -> Rates:
    """Tunes on every other text, then lets all candidates and the extra runs take turns over all texts."""
    failures = dict(field_.failures)
    runs: dict[str, Callable[[], float]] = {}
    owner: dict[str, tuple[str, str]] = {}
    say(f"{kind} lengths: each candidate's best setting, over {math.ceil(len(texts) / 2)} texts")
    for candidate in field_.candidates.values():
        tuned = tune(candidate, texts[::2], passes, failures, say)
        for setting in list(tuned) if candidate.all_settings else list(tuned)[:1]:
            label = f"{candidate.name}, {setting}"
            runs[label] = lambda embed=candidate.settings[setting]: at_rest(embed, texts)
            owner[label] = (candidate.name, setting)
    say(f"{kind} lengths: {len(texts)} texts, {rounds} rounds")
    runs.update(extra)
    broken: dict[str, str] = {}
    rates = interleave(runs, repetitions=rounds, say=say, warm_up=False, failures=broken)
    by_setting: dict[str, dict[str, list[float]]] = {}
    for label, values in rates.items():
        if label in owner:
            name, setting = owner[label]
            by_setting.setdefault(name, {})[setting] = values
    failures.update({owner.get(label, (label, ""))[0]: reason for label, reason in broken.items()})
    return Rates(kind, len(texts), by_setting, {name: rates[name] for name in extra if name in rates}, failures)


def peer_row(name: str, rates: Rates, ours: str, peer: str, bar: float) -> Row:
    """Our best over a peer's best, or why there is none."""
    try:
        our_setting, our_rates = rates.best(ours)
        setting, peer_rates = rates.best(peer)
    except CandidateError as error:
        return missing(name, str(error), peer=peer, bar=bar)
    return ratio(name, our_rates, peer_rates, peer=f"{peer}, {setting}", bar=bar, note=our_setting)


def setting_rows(name: str, rates: Rates, ours: str, peers: Sequence[str]) -> list[Row]:
    """Our rate at each concurrency over the fastest peer at its best; no bar."""
    try:
        peer, setting, peer_rates = rates.fastest(peers)
    except CandidateError:
        return []
    return [
        ratio(f"{name}, {our_setting}", our_rates, peer_rates, peer=f"{peer}, {setting}")
        for our_setting, our_rates in sorted(
            rates.by_setting.get(ours, {}).items(), key=lambda item: int(item[0].rpartition(" ")[2])
        )
    ]


def absolute_rows(rates: Rates) -> list[Row]:
    """Each candidate's best rate in texts per second."""
    rows = []
    for name in rates.by_setting:
        setting, values = rates.best(name)
        rows.append(rate(f"{name}, {rates.kind} lengths, {setting}", values, "texts/s"))
    return rows
