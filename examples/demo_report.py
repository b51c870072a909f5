"""What the demo shows: progress while the run goes on, then the stages, the index and the answers.

Plain text that any terminal takes; colour and a moving line only where the output is a terminal.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dagster import DagsterEvent, EventLogEntry

    from medkg.dagster import Answer, Passage

STAGES = ("documents", "chunks", "embeddings", "vector_index", "reranked_answers")
WIDTH = 100
PASSAGES_SHOWN = 3
PASSAGE_LINES = 4
WORD_LETTERS = 4


@dataclass
class Stage:
    """What one step has told so far."""

    started: float = 0.0
    seconds: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class Screen:
    """Writes to standard output."""

    def __init__(self) -> None:
        """Looks at the terminal: its width, and whether it is one."""
        self.is_terminal = sys.stdout.isatty()
        self._colour = self.is_terminal and "NO_COLOR" not in os.environ
        self.width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        self._moving = False

    def line(self, text: str = "") -> None:
        """Writes a line, in place of the moving one."""
        self._clear()
        print(text, flush=True)

    def fact(self, name: str, value: str) -> None:
        """Writes a name and its value."""
        self.line(f"  {name:<12}{value}")

    def waiting(self, text: str) -> None:
        """Shows what is being waited for; on a terminal the next line takes its place."""
        if self.is_terminal:
            self._clear()
            print(f"  {text} ..."[: self.width - 1], end="", flush=True)
            self._moving = True

    def heading(self, text: str) -> None:
        """Writes a heading, with room above it."""
        self.line()
        self.line(self._paint("1", text))
        self.line("-" * self.width)

    def failed(self, failures: Sequence[str], log: Path) -> None:
        """Says why the run failed."""
        self.heading(self._paint("31", "The run failed"))
        for failure in failures or ["Dagster gave no reason"]:
            self.line(textwrap.fill(failure.strip(), self.width, initial_indent="  ", subsequent_indent="  "))
        self.line(f"  The whole log: {log}")

    def summary(self, progress: Progress, answers: Sequence[Answer], wall: float) -> None:
        """Writes what came of the run."""
        stages = progress.stages
        found = {name: stage.metadata for name, stage in stages.items()}
        self.heading("What was made")
        for name in STAGES:
            self.line(f"  {name:<18}{_describe(name, found.get(name, {}))}")
        for name in STAGES:
            for row in found.get(name, {}).get("medkg/set_aside", ()):
                self.line(self._paint("33", f"  set aside in {name}: {row['document']}"))
                self.line(
                    textwrap.fill(str(row["reason"]), self.width, initial_indent="    ", subsequent_indent="    ")
                )

        for number, answer in enumerate(answers, start=1):
            self.heading(f"Question {number}: {answer.question}")
            if not answer.passages:
                self.line("  no passage found")
            for passage in answer.passages[:PASSAGES_SHOWN]:
                self._passage(passage, answer.question)

        self.heading("How long it took")
        self.line(f"  {'stage':<18}{'work':>10}{'whole step':>14}")
        for name in STAGES:
            stage = stages.get(name, Stage())
            work = stage.metadata.get("medkg/seconds")
            self.line(f"  {name:<18}{_seconds(work):>10}{_seconds(stage.seconds):>14}")
        self.line(f"  {'everything':<18}{'':>10}{_seconds(wall):>14}   starting gpu-server and Dagster included")

    def _passage(self, passage: Passage, question: str) -> None:
        sections = [heading for heading in passage.headings if heading != passage.document_title]
        page = f", page {passage.page}" if passage.page is not None else ""
        self.line(f"  {passage.rank}. {self._paint('36', passage.document_title)}  ({passage.source}{page})")
        self.line(f"     {' > '.join(sections) or 'the beginning'}")
        self.line(
            f"     score {passage.score:.2f} (reranker {passage.relevance:.2f}, similarity {passage.similarity:.2f});"
            f" rank {passage.retrieved_rank} by similarity alone"
        )
        for line in _excerpt(passage.text, question, self.width - 7):
            self.line(f"     | {line}")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def _clear(self) -> None:
        if self._moving:
            print("\r\x1b[2K", end="")
            self._moving = False


class Progress:
    """Turns the events of a run into lines."""

    def __init__(self, screen: Screen) -> None:
        """Starts with nothing seen."""
        self.stages: dict[str, Stage] = {}
        self.failures: list[str] = []
        self._screen = screen
        self._current = "starting Dagster"
        self._since = time.monotonic()

    def event(self, entry: EventLogEntry) -> None:
        """Takes the next event of the run."""
        event = entry.dagster_event
        if event is None:
            if entry.step_key is not None and int(entry.level) >= logging.INFO:
                self._current = f"{entry.step_key}: {entry.user_message}"
            return
        name = event.step_key
        kind = event.event_type_value
        if kind == "STEP_WORKER_STARTING" and name is not None:
            self._wait_for(f"{name}: starting")
            self.stages[name] = Stage(started=time.monotonic())
            if not self._screen.is_terminal:
                self._screen.line(f"  [{self._number(name)}] {name} ...")
        elif kind == "STEP_START" and name is not None:
            self._wait_for(f"{name}: working")
        elif kind == "ASSET_MATERIALIZATION" and name is not None:
            self.stages.setdefault(name, Stage()).metadata = _plain_metadata(event)
        elif kind == "STEP_SUCCESS" and name is not None:
            stage = self.stages.setdefault(name, Stage())
            stage.seconds = time.monotonic() - stage.started
            self._screen.line(
                f"  [{self._number(name)}] {name:<18}{_describe(name, stage.metadata)}  {_seconds(stage.seconds)}"
            )
        elif kind == "STEP_UP_FOR_RETRY":
            self._screen.line(f"  {name}: {_reason(event)}; trying again")
        elif event.is_failure:
            self.failures.append(_reason(event))

    def tick(self) -> None:
        """Moves the line of what is going on."""
        self._screen.waiting(f"{self._current}, {time.monotonic() - self._since:.0f} s")

    def close(self) -> None:
        """Ends the moving line."""
        self.failures = list(dict.fromkeys(reason for reason in self.failures if reason))

    def _wait_for(self, text: str) -> None:
        self._current, self._since = text, time.monotonic()

    def _number(self, name: str) -> str:
        return f"{STAGES.index(name) + 1}/{len(STAGES)}" if name in STAGES else "-"


def _excerpt(text: str, question: str, width: int) -> list[str]:
    """The few lines of a passage that share most words with the question; tables and lists keep their lines."""
    wanted = {word for word in re.findall(r"\w+", question.lower()) if len(word) >= WORD_LETTERS}
    rows = [row for row in text.splitlines() if row.strip(" |-")]
    lines = [line for row in rows for line in textwrap.wrap(row, width - 4)]
    words = [wanted & set(re.findall(r"\w+", line.lower())) for line in lines]

    def shared(start: int) -> int:
        return len(set().union(*words[start : start + PASSAGE_LINES]))

    start = max(range(max(len(lines) - PASSAGE_LINES, 0) + 1), key=lambda at: (shared(at), -at))
    shown = lines[start : start + PASSAGE_LINES]
    if shown and start + PASSAGE_LINES < len(lines):
        shown[-1] += " ..."
    return [f"... {shown[0]}", *shown[1:]] if shown and start else shown


def _describe(name: str, metadata: dict[str, Any]) -> str:
    """One line on what a stage made."""
    rows = metadata.get("dagster/row_count", 0)
    failed = metadata.get("medkg/documents_set_aside", 0)
    aside = f", {failed} set aside" if failed else ""
    if name == "documents":
        return f"{rows} documents ({metadata.get('medkg/formats', '')}){aside}"
    if name == "chunks":
        longest, limit = metadata.get("medkg/longest"), metadata.get("medkg/limit")
        return f"{rows} chunks, longest {longest} of {limit} tokens{aside}"
    if name == "embeddings":
        return (
            f"{rows} vectors of {metadata.get('medkg/dimension')} by {metadata.get('medkg/model')}"
            f" on {metadata.get('medkg/device')}{aside}"
        )
    if name == "vector_index":
        return (
            f"{rows} points in {metadata.get('medkg/collection')!r}"
            f" ({metadata.get('medkg/inserted')} new, {metadata.get('medkg/replaced')} replaced)"
        )
    return f"{rows} questions, {metadata.get('medkg/passages', 0)} passages, by {metadata.get('medkg/model')}"


def _plain_metadata(event: DagsterEvent) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in event.step_materialization_data.materialization.metadata.items():
        records = getattr(value, "records", None)
        values[name] = value.value if records is None else [record.data for record in records]
    return values


def _reason(event: DagsterEvent) -> str:
    """The innermost message that says something: Dagster wraps ours in its own."""
    data = event.event_specific_data
    reported = getattr(data, "user_failure_data", None)
    if reported is not None and reported.description:
        return str(reported.description)
    error = getattr(data, "error", None)
    if error is None:
        return ""
    while error.cause is not None and error.cls_name in {"RetryRequested", "RetryRequestedFromPolicy"}:
        error = error.cause
    return str(error.message).strip().partition(": ")[2] or str(error.message).strip()


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
