"""The sample documents: enough of them, of every kind, and the generated ones as the script writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from docling_core.types.doc import ListItem, SectionHeaderItem, TableItem

from medkg.chunking import load_document
from medkg.chunking.coverage import body_texts

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "examples" / "documents"


def test_there_are_enough_of_each_kind() -> None:
    suffixes = [path.suffix for path in SAMPLES.iterdir()]
    assert len(suffixes) >= 8
    least = {".md": 3, ".html": 2, ".docx": 2, ".json": 2}
    assert all(suffixes.count(suffix) >= count for suffix, count in least.items())


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_each_has_sections_a_table_a_list_and_a_notice(path: Path) -> None:
    document = load_document(path).document
    items = [item for item, _ in document.iterate_items()]
    for kind in (SectionHeaderItem, TableItem, ListItem):
        assert any(isinstance(item, kind) for item in items), kind
    text = " ".join(text for _, text, _ in body_texts(document))
    assert 400 <= len(text.split()) <= 1200
    assert "not medical advice" in text or "illustrative" in text


def test_the_script_writes_the_generated_samples_byte_for_byte(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "make_documents.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=300)
    written = sorted(tmp_path.iterdir())
    assert [path.name for path in written] == [
        "harbour-ckd-trial.json",
        "heart-failure-four-drugs.docx",
        "methotrexate-monitoring.docx",
        "sepsis-first-hours.json",
    ]
    for path in written:
        assert path.read_bytes() == (SAMPLES / path.name).read_bytes(), path.name
