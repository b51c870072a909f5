"""What the chunking tests share: the real tokenizer, the sample documents, and chunkers made of both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medkg.chunking import Chunker, chunk_documents

if TYPE_CHECKING:
    from medkg.chunking import ChunkingReport

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "examples" / "documents"
REAL_DOCUMENTS = REPOSITORY.parent / "shared" / "data" / "docling"
MODEL_LIMIT = 256


@pytest.fixture(scope="session")
def minilm_tokenizer_json() -> bytes:
    """Give the tokenizer.json of all-MiniLM-L6-v2."""
    folder = os.environ.get("MEDKG_TEST_MODEL_DIR")
    if not folder:
        pytest.fail("MEDKG_TEST_MODEL_DIR names no model directory; `make test` sets it")
    return (Path(folder) / "tokenizer.json").read_bytes()


@pytest.fixture(scope="session", params=["hybrid", "hierarchical"])
def chunker(request: pytest.FixtureRequest, minilm_tokenizer_json: bytes) -> Chunker:
    """Give a chunker of each strategy."""
    return Chunker(minilm_tokenizer_json, MODEL_LIMIT, strategy=request.param)


@pytest.fixture(scope="session")
def sample_report(chunker: Chunker) -> ChunkingReport:
    """Chunk every sample document once per strategy."""
    report = chunk_documents([SAMPLES], chunker)
    assert not report.failures
    return report


@pytest.fixture(scope="session")
def real_documents() -> Path:
    """Give the folder of real DoclingDocuments, which lies outside the repository."""
    if not REAL_DOCUMENTS.is_dir():
        pytest.skip(f"no real documents: {REAL_DOCUMENTS} is absent")
    return REAL_DOCUMENTS
