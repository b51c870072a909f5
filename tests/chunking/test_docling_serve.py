"""PDF through a docling-serve, which is scripted."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from medkg.chunking import Chunker, DoclingServeUnavailableError, DocumentError, chunk_documents, load_document
from tests.docling_serve import DONE, FAILED, DoclingServe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    path = tmp_path / "trial.pdf"
    path.write_bytes(b"%PDF-1.7 content")
    return path


def test_a_pdf_comes_back_as_a_document_with_pages(
    docling_serve: DoclingServe, pdf: Path, minilm_tokenizer_json: bytes
) -> None:
    docling_serve.polls = ["pending", "started"]
    docling_serve.finish("trial.pdf")
    source = load_document(pdf, docling_serve=f"{docling_serve.address}/")
    assert source.media_type == "application/pdf"
    assert source.source == "trial.pdf"
    chunks = Chunker(minilm_tokenizer_json, 256).chunk(source)
    assert {chunk.page for chunk in chunks} == {1, 2, 3}
    (body,) = docling_serve.submitted
    assert b"%PDF-1.7 content" in body
    assert b'filename="trial.pdf"' in body
    assert b'name="to_formats"\r\n\r\njson' in body
    assert docling_serve.polls == []


def test_a_failed_conversion_gives_the_servers_reason(docling_serve: DoclingServe, pdf: Path) -> None:
    docling_serve.finish("trial.pdf", FAILED)
    with pytest.raises(DocumentError, match=r"could not convert it .the file is encrypted."):
        load_document(pdf, docling_serve=docling_serve.address)


@pytest.mark.parametrize("result", [{"status": "success"}, {**DONE, "document": {"json_content": {"texts": 1}}}, []])
def test_an_answer_of_another_shape_is_an_error(docling_serve: DoclingServe, pdf: Path, result: object) -> None:
    docling_serve.finish("trial.pdf", result)
    with pytest.raises(DocumentError, match="docling-serve at"):
        load_document(pdf, docling_serve=docling_serve.address)


def test_a_refused_file_is_an_error(docling_serve: DoclingServe, pdf: Path) -> None:
    docling_serve.refusal = 413
    with pytest.raises(DocumentError, match="did not answer as expected"):
        load_document(pdf, docling_serve=docling_serve.address)


def test_a_server_that_is_not_there_is_no_fault_of_the_document(pdf: Path) -> None:
    with pytest.raises(DoclingServeUnavailableError, match="is not available"):
        load_document(pdf, docling_serve="http://nowhere.invalid:5001")


def test_a_server_that_fails_is_no_fault_of_the_document(
    docling_serve: DoclingServe, pdf: Path, minilm_tokenizer_json: bytes
) -> None:
    docling_serve.refusal = 503
    with pytest.raises(DoclingServeUnavailableError, match="503") as caught:
        chunk_documents([pdf], Chunker(minilm_tokenizer_json, 256), docling_serve=docling_serve.address)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own
    assert caught.value.retryable


@pytest.mark.parametrize("address", ["docling:5001", "", "ftp://docling", "http://"])
def test_an_address_that_is_none_is_refused(pdf: Path, address: str) -> None:
    with pytest.raises(DocumentError, match="is not an HTTP address"):
        load_document(pdf, docling_serve=address)
