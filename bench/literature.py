"""Any number of small medical notes as Markdown files: seeded, each one different, the same on every machine."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CONDITIONS = ("gout", "asthma", "sepsis", "migraine", "psoriasis", "heart failure", "atrial fibrillation", "anaemia")
_DRUGS = ("allopurinol", "colchicine", "dapagliflozin", "warfarin", "apixaban", "methotrexate", "propranolol", "iron")
_OUTCOMES = ("admission to hospital", "death from any cause", "pain at rest", "loss of kidney function", "bleeding")
_GROUPS = ("adults", "older people", "women of childbearing age", "children above six", "people with diabetes")
_SECTIONS = ("Results", "Interpretation")
_SENTENCES = (
    "Of {n} {group} with {condition}, {m} were given {drug} at {dose} mg a day for {weeks} weeks.",
    "In those on {drug}, {outcome} was seen in {m} of {n}, against {k} on usual care.",
    "{drug} lowered the risk of {outcome} in {condition}, with a hazard ratio of 0.{ratio}.",
    "After {weeks} weeks {k} {group} had stopped {drug}, most of them for nausea.",
    "A dose of {dose} mg was too much for {group} with {condition} and an eGFR below {k}.",
    "No difference in {outcome} was found between {dose} mg and half of it.",
)


def note(number: int, *, seed: int = 0) -> str:
    """The text of one note, about 100 tokens in two sections; it depends on its number and the seed alone."""
    chance = random.Random(f"{seed}:{number}")
    facts = {
        "condition": chance.choice(_CONDITIONS),
        "drug": chance.choice(_DRUGS),
        "group": chance.choice(_GROUPS),
    }
    lines = [f"# Note {number}: {facts['drug']} in {facts['condition']}"]
    for section in _SECTIONS:
        sentences = (
            sentence.format(
                **facts,
                outcome=chance.choice(_OUTCOMES),
                n=chance.randint(400, 9000),
                m=chance.randint(100, 399),
                k=chance.randint(10, 99),
                dose=chance.randint(2, 900),
                weeks=chance.randint(2, 104),
                ratio=chance.randint(40, 95),
            )
            for sentence in chance.sample(_SENTENCES, 2)
        )
        lines += [f"## {section}", " ".join(sentences)]
    return "\n\n".join(lines) + "\n"


def write_notes(folder: Path, count: int, *, seed: int = 0) -> None:
    """Writes the first `count` notes as `note-00000.md` and so on; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"note-{number:05d}.md"
        if not path.exists():
            path.write_text(note(number, seed=seed), encoding="utf-8")
