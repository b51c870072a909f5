"""PDF through docling-serve. The peer is scripted: the real one needs torch, which no test environment has."""

from __future__ import annotations

import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from medkg.chunking import Chunker, DoclingServeUnavailableError, DocumentError, chunk_documents, load_document

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
CONVERTED = json.loads((SAMPLES / "harbour-ckd-trial.json").read_text(encoding="utf-8"))
DONE: dict[str, Any] = {"document": {"json_content": CONVERTED}, "status": "success", "errors": []}


class Peer(BaseHTTPRequestHandler):
    """Answers as docling-serve's API v1 does, with what the test put in."""

    result: ClassVar[dict[str, Any]] = DONE
    polls: ClassVar[list[str]] = []
    submitted: ClassVar[list[bytes]] = []
    submit_code: ClassVar[int] = 200

    def do_POST(self) -> None:
        """Take a file in."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/convert/file/async"
        self.submitted.append(body)
        self.answer({"task_id": "task 1", "task_status": "pending"}, self.submit_code)

    def do_GET(self) -> None:
        """Tell how a task is, or hand its result out."""
        if self.path.startswith("/v1/status/poll/task%201?wait="):
            self.answer({"task_id": "task 1", "task_status": self.polls.pop(0)})
        elif self.path == "/v1/result/task%201":
            self.answer(self.result)
        else:
            self.answer({}, 404)

    def answer(self, content: dict[str, Any], code: int = 200) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Peer, "polls", ["pending", "started", "success"])
    monkeypatch.setattr(Peer, "submitted", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    path = tmp_path / "trial.pdf"
    path.write_bytes(b"%PDF-1.7 content")
    return path


def test_a_pdf_comes_back_as_a_document_with_pages(peer: str, pdf: Path, minilm_tokenizer_json: bytes) -> None:
    source = load_document(pdf, docling_serve=peer)
    assert source.media_type == "application/pdf"
    assert source.source == "trial.pdf"
    chunks = Chunker(minilm_tokenizer_json, 256).chunk(source)
    assert {chunk.page for chunk in chunks} == {1, 2, 3}
    (body,) = Peer.submitted
    assert b"%PDF-1.7 content" in body
    assert b'filename="trial.pdf"' in body
    assert b'name="to_formats"\r\n\r\njson' in body
    assert Peer.polls == []


def test_a_failed_conversion_gives_the_servers_reason(peer: str, pdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"document": {}, "status": "failure", "errors": [{"error_message": "the file is encrypted"}]}
    monkeypatch.setattr(Peer, "result", failed)
    monkeypatch.setattr(Peer, "polls", ["failure"])
    with pytest.raises(DocumentError, match=r"could not convert it .the file is encrypted."):
        load_document(pdf, docling_serve=peer)


@pytest.mark.parametrize("result", [{"status": "success"}, {**DONE, "document": {"json_content": {"texts": 1}}}, []])
def test_an_answer_of_another_shape_is_an_error(
    peer: str, pdf: Path, monkeypatch: pytest.MonkeyPatch, result: object
) -> None:
    monkeypatch.setattr(Peer, "result", result)
    with pytest.raises(DocumentError, match="docling-serve at"):
        load_document(pdf, docling_serve=peer)


def test_a_refused_file_is_an_error(peer: str, pdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "submit_code", 413)
    with pytest.raises(DocumentError, match="did not answer as expected"):
        load_document(pdf, docling_serve=peer)


def test_a_server_that_is_not_there_is_no_fault_of_the_document(peer: str, pdf: Path) -> None:
    with pytest.raises(DoclingServeUnavailableError, match="is not available"):
        load_document(pdf, docling_serve=peer.replace("127.0.0.1", "nowhere.invalid"))


def test_a_server_that_fails_is_no_fault_of_the_document(
    peer: str, pdf: Path, monkeypatch: pytest.MonkeyPatch, minilm_tokenizer_json: bytes
) -> None:
    monkeypatch.setattr(Peer, "submit_code", 503)
    with pytest.raises(DoclingServeUnavailableError, match="503") as caught:
        chunk_documents([pdf], Chunker(minilm_tokenizer_json, 256), docling_serve=peer)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own
    assert caught.value.retryable


@pytest.mark.parametrize("address", ["docling:5001", "", "ftp://docling", "http://"])
def test_an_address_that_is_none_is_refused(pdf: Path, address: str) -> None:
    with pytest.raises(DocumentError, match="is not an HTTP address"):
        load_document(pdf, docling_serve=address)
