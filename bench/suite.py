"""What the sections of the engine suite share: how much is measured, the peers that run, and the rows so far."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import medkg
from bench.measure import CandidateError, Row, missing
from bench.peer import Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack
    from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        full: Tuning tries all settings, each twice.
        rounds: Of each comparison.
        texts: Texts of each set.
        growth_rounds: Calls with 20,000 texts.
        load_seconds: Length of the mixed load.
    """

    full: bool
    rounds: int
    texts: Mapping[str, int]
    growth_rounds: int
    load_seconds: float

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes that peers are tried with."""
        return (4, 8, 16, 32, 64) if self.full else (8, 16, 32)

    @property
    def passes(self) -> int:
        """Measurements of each setting while tuning."""
        return 2 if self.full else 1


QUICK = Plan(full=False, rounds=5, texts={"mixed": 300, "short": 300, "long": 48}, growth_rounds=1, load_seconds=45.0)
FULL = Plan(full=True, rounds=9, texts={"mixed": 300, "short": 300, "long": 300}, growth_rounds=5, load_seconds=1200.0)


@dataclass
class Suite:
    """What the sections share while they run."""

    binary: Path
    model: Path
    reranker: Path
    folder: Path
    plan: Plan
    say: Callable[[str], None]
    stack: ExitStack
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def peer(self, name: str, script: str, interpreter: str, **arguments: Any) -> Peer:
        """Starts a peer that is ended with the suite."""
        self.say(f"starting {name}")
        python = os.environ.get(interpreter, "")
        log = self.folder / f"{script}.log"
        peer = self.stack.enter_context(Peer(script, python, log, threads=os.cpu_count() or 1, **arguments))
        self.versions[name] = peer.versions
        return peer

    def section(self, title: str, names: Mapping[str, tuple[str, float]], run: Callable[[], list[Row]]) -> None:
        """Runs a part of the suite; if it cannot run, its rows (name to unit and bar) say why."""
        self.say(title)
        try:
            self.rows += run()
        except (CandidateError, medkg.MedkgError) as error:
            self.say(f"  failed: {error}")
            self.rows += [missing(name, str(error), unit=unit, bar=bar) for name, (unit, bar) in names.items()]


def present(peer: Peer | CandidateError) -> Peer:
    """The peer, or why it is not there."""
    if isinstance(peer, CandidateError):
        raise peer
    return peer
