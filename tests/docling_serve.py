"""A scripted docling-serve: the real one needs torch, which no test environment has."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).resolve().parents[1] / "examples" / "documents"
CONVERTED = json.loads((SAMPLES / "harbour-ckd-trial.json").read_text(encoding="utf-8"))
"""A Docling document with three pages."""
DONE: dict[str, Any] = {"document": {"json_content": CONVERTED}, "status": "success", "errors": []}
FAILED: dict[str, Any] = {
    "document": {},
    "status": "failure",
    "errors": [{"error_message": "the file is encrypted"}],
}


class DoclingServe(ThreadingHTTPServer):
    """Takes files in, and is done with those that the test says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.refusal: int | None = None
        """HTTP status with which files are refused."""
        self.polls: list[str] = []
        """What is said of a task in the next answers, before its end can be."""
        self.results: dict[str, Any] = {}
        """By the file's name: what the conversion ended with."""
        self.submitted: list[bytes] = []
        """Bodies of the requests that handed files in."""
        self.files: dict[str, str] = {}
        """Task to the name of its file."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def finish(self, name: str, result: Any = DONE) -> None:
        """Ends the conversion of a file."""
        self.results[name] = result


class _Conversation(BaseHTTPRequestHandler):
    """One request, answered as docling-serve's API v1 does."""

    server: DoclingServe

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/convert/file/async" or self.server.refusal is not None:
            self._answer({}, self.server.refusal or 404)
            return
        task = f"task {len(self.server.files)}"
        self.server.submitted.append(body)
        self.server.files[task] = body.partition(b'filename="')[2].partition(b'"')[0].decode()
        self._answer({"task_id": task, "task_status": "pending"})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        route, _, task = url.path.rpartition("/")
        name = self.server.files.get(unquote(task))
        if name is None:
            self._answer({"detail": "Task not found."}, 404)
        elif route == "/v1/status/poll" and url.query.startswith("wait="):
            self._answer({"task_id": unquote(task), "task_status": self._status(name)})
        elif route == "/v1/result" and name in self.server.results:
            self._answer(self.server.results[name])
        else:
            self._answer({}, 404)

    def _status(self, name: str) -> str:
        if self.server.polls:
            return self.server.polls.pop(0)
        if name not in self.server.results:
            return "pending"
        return "failure" if self.server.results[name] == FAILED else "success"

    def _answer(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def serving() -> Iterator[DoclingServe]:
    """Answers until the block ends."""
    with DoclingServe() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
