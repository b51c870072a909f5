"""The older interface: it still works, without torch, and each use says what to write instead."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medkg.chunking import Chunker, DocumentError, load_document
from medkg.chunking.legacy import STRATEGIES, LegacyChunker

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "documents" / "harbour-ckd-trial.json"
TOKENIZER = Path(os.environ["MEDKG_TEST_MODEL_DIR"], "tokenizer.json")


def older(**arguments: Any) -> LegacyChunker:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        return LegacyChunker(TOKENIZER.read_bytes(), 256, **arguments)


@pytest.mark.requirement("isolation 1.1")
@pytest.mark.requirement("isolation 1.4")
@pytest.mark.parametrize("value", [True, False])
def test_gpu_semantic_checks_are_accepted_ignored_and_warned_of(value: object) -> None:
    with (
        pytest.warns(DeprecationWarning, match=r"use Chunker\(strategy='hybrid'\)"),
        pytest.warns(DeprecationWarning, match="gpu_semantic_checks is deprecated and does nothing: there is no torch"),
    ):
        chunker = LegacyChunker(TOKENIZER.read_bytes(), 256, strategy="semantic_splitter", gpu_semantic_checks=value)
    assert chunker.chunk(SAMPLE, tenant_id="clinic-a") == older(strategy="semantic_splitter").chunk(
        SAMPLE, tenant_id="clinic-a"
    )
    with pytest.raises(TypeError, match="gpu_semantic_checks"):
        Chunker(TOKENIZER.read_bytes(), 256, gpu_semantic_checks=value)  # type: ignore[call-arg]  # it is gone there


@pytest.mark.requirement("isolation 1.4")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_older_strategy_gives_todays_chunks_under_the_older_names(strategy: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"use Chunker\(strategy='{STRATEGIES[strategy]}'\)"):
        chunker = LegacyChunker(TOKENIZER.read_bytes(), 256, strategy=strategy)
    source = load_document(SAMPLE)
    made = chunker.chunk(source, tenant_id="clinic-a")
    today = Chunker(TOKENIZER.read_bytes(), 256, strategy=STRATEGIES[strategy]).chunk(source)
    assert [(chunk.body, chunk.title_path, chunk.section, chunk.page_no) for chunk in made] == [
        (chunk.text, chunk.headings, chunk.section, chunk.page) for chunk in today
    ]
    whole = "\n".join(chunk.body for chunk in made)
    assert all(whole[chunk.start_char : chunk.end_char] == chunk.body for chunk in made)
    assert {chunk.tenant_id for chunk in made} == {"clinic-a"}
    assert "table" in {chunk.granularity for chunk in made}


def test_older_numbers_are_taken_and_unknown_arguments_refused() -> None:
    chunker = older(chunk_size=64, chunk_overlap=16)
    assert (chunker.chunker.max_tokens, chunker.chunker.overlap_tokens) == (64, 16)
    with pytest.warns(DeprecationWarning, match="Chunker"), pytest.raises(TypeError, match="colour='red'"):
        LegacyChunker(TOKENIZER.read_bytes(), 256, colour="red")
    with pytest.raises(ValueError, match="strategy: 'odd' is unknown"):
        LegacyChunker(TOKENIZER.read_bytes(), 256, strategy="odd")
    with pytest.raises(TypeError, match="blocks"):
        older().chunk(SAMPLE, tenant_id="clinic-a", blocks=[])


def test_plain_text_is_chunked_by_its_paragraphs() -> None:
    chunker = older(strategy="table")
    made = chunker.chunk_text("clinic-a", "note-1", "Fever for two days.\n\nParacetamol given.\n")
    assert [chunk.body for chunk in made] == ["Fever for two days.", "Paracetamol given."]
    assert {chunk.doc_id for chunk in made} == {"note-1"}
    with pytest.raises(DocumentError, match="the text is empty"):
        chunker.chunk_text("clinic-a", "note-1", " \n\n ")
