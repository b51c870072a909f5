"""Real papers that Docling converted, from outside the repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from medkg.chunking import Chunker, chunk_documents

if TYPE_CHECKING:
    from pathlib import Path

MODEL_LIMIT = 256


@pytest.mark.requirement("isolation 1.2")
def test_real_papers_fit_and_lose_nothing(chunker: Chunker, real_documents: Path) -> None:
    report = chunk_documents([real_documents], chunker)
    assert not report.failures
    assert len(report.documents) == len(list(real_documents.glob("*.json"))) > 0
    for document in report.documents:
        assert document.uncovered_items == ()
        assert document.chunk_count > 10
    assert max(chunk.token_count for chunk in report.chunks) <= MODEL_LIMIT
    paged = [document for document in report.documents if document.pages]
    for document in paged:
        chunks = [chunk for chunk in report.chunks if chunk.document_id == document.document_id]
        assert all(chunk.page and chunk.bounding_boxes for chunk in chunks)
        assert {page for chunk in chunks for page in chunk.pages} <= set(range(1, document.pages + 1))


@pytest.mark.filterwarnings("ignore:Chunks prefix is too long")  # a table header wider than 64 tokens
def test_real_papers_fit_a_small_model_too(real_documents: Path, minilm_tokenizer_json: bytes) -> None:
    report = chunk_documents([real_documents], Chunker(minilm_tokenizer_json, 64))
    assert not report.failures
    assert max(chunk.token_count for chunk in report.chunks) <= 64
    assert all(document.uncovered_items == () for document in report.documents)
