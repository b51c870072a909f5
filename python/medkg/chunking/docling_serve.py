"""PDF through a docling-serve that the operator runs: hand the file in, wait for it, take the DoclingDocument out.

Why not docling-slim's `service-client` extra: it brings httpx, websockets and a command line for what is three HTTP
calls, and `requests` is here already as a dependency of docling-core. The asynchronous calls are used, because the
server cuts a synchronous one off after two minutes.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import requests
from docling_core.types.doc import DoclingDocument

from medkg.chunking.errors import DoclingServeUnavailableError, DocumentError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds one HTTP call may take, connecting included; the server answers a poll within `_POLL_WAIT`.
_CALL_TIMEOUT = 60.0
_POLL_WAIT = 5.0
#: Least seconds between polls, for servers that do not wait as asked.
_POLL_INTERVAL = 0.25
#: HTTP statuses from here on are the server's fault.
_SERVER_FAULT = 500


def convert_file(path: Path, content: bytes, address: str, *, timeout: float = 900.0) -> DoclingDocument:
    """Convert one file, and wait for it.

    Args:
        path: the file, for its name and for errors.
        content: its bytes.
        address: of the docling-serve, such as "http://docling:5001".
        timeout: seconds for the whole conversion.

    Raises:
        DocumentError: the address is none, the server refuses the file, or the conversion fails or takes too long.
        DoclingServeUnavailableError: the server cannot be reached, does not answer, or fails with HTTP 5xx.
    """
    task = submit_file(path, content, address)
    deadline = time.monotonic() + timeout
    while (asked := time.monotonic()) <= deadline:
        if is_finished(path, address, task, wait=_POLL_WAIT):
            return fetch_document(path, address, task)
        time.sleep(max(0.0, _POLL_INTERVAL - (time.monotonic() - asked)))
    problem = f"docling-serve at {address} was not done after {timeout:g} s"
    raise DocumentError(path, problem, "Split the file, or give the server more power")


def submit_file(path: Path, content: bytes, address: str) -> str:
    """Hand a file in; gives the task that names its conversion. Raises as `convert_file`."""
    with _calls(path, address) as (session, base):
        # Page pictures are not wanted: they would make up most of the answer.
        form = {"to_formats": "json", "image_export_mode": "placeholder"}
        files = {"files": (path.name, content, "application/pdf")}
        answer = _json(session.post(f"{base}/v1/convert/file/async", data=form, files=files, timeout=_CALL_TIMEOUT))
        return quote(str(answer["task_id"]), safe="")


def is_finished(path: Path, address: str, task: str, *, wait: float = 0.0, timeout: float = _CALL_TIMEOUT) -> bool:
    """Tell whether a task has ended, well or not. Raises as `convert_file`.

    Args:
        path: the file, for errors.
        address: of the docling-serve.
        task: what `submit_file` gave.
        wait: seconds that the server may wait for the end before it answers.
        timeout: seconds for the call.
    """
    with _calls(path, address) as (session, base):
        answer = _json(session.get(f"{base}/v1/status/poll/{task}", params={"wait": str(wait)}, timeout=timeout))
        # A failed task has a result too, and only that says why.
        return answer["task_status"] not in {"pending", "started"}


def fetch_document(path: Path, address: str, task: str) -> DoclingDocument:
    """Take the result of a task that has ended; the server may forget it then. Raises as `convert_file`."""
    with _calls(path, address) as (session, base):
        answer = _json(session.get(f"{base}/v1/result/{task}", timeout=_CALL_TIMEOUT))
    return _document(path, base, answer)


@contextmanager
def _calls(path: Path, address: str) -> Iterator[tuple[requests.Session, str]]:
    """A session and the server's address, and what becomes of what goes wrong in a call."""
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        action = "Write it like http://docling:5001"
        raise DocumentError(path, f"docling_serve: {address!r} is not an HTTP address", action)
    base = address.rstrip("/")
    try:
        with requests.Session() as session:
            yield session, base
    except (requests.RequestException, KeyError, TypeError, ValueError) as error:
        if _is_outage(error):
            message = f"docling-serve at {base} is not available ({type(error).__name__}: {error})"
            raise DoclingServeUnavailableError(
                message, service="docling-serve", endpoint=base, attempts=1, retryable=True
            ) from error
        problem = f"docling-serve at {base} did not answer as expected ({type(error).__name__}: {error})"
        action = "Check that docling-serve (API v1) runs there and look at its log"
        raise DocumentError(path, problem, action) from error


def _is_outage(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code >= _SERVER_FAULT
    # The second breaks off in the middle of an answer.
    return isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.Timeout))


def _json(response: requests.Response) -> dict[str, Any]:
    response.raise_for_status()
    answer = response.json()
    if not isinstance(answer, dict):
        message = f"a JSON object was expected, not {type(answer).__name__}"
        raise TypeError(message)
    return answer


def _document(path: Path, base: str, answer: dict[str, Any]) -> DoclingDocument:
    document = answer.get("document")
    exported = document.get("json_content") if isinstance(document, dict) else None
    if answer.get("status") not in {"success", "partial_success"} or exported is None:
        reasons = "; ".join(str(error.get("error_message", error)) for error in answer.get("errors") or [])
        problem = f"docling-serve at {base} could not convert it ({reasons or answer.get('status')})"
        raise DocumentError(path, problem, "Check that the file opens, and is not encrypted")
    try:
        return DoclingDocument.model_validate(exported)
    except ValueError as error:
        problem = f"docling-serve at {base} answered with a DoclingDocument this docling-core cannot read"
        raise DocumentError(path, problem, "Use a docling-serve whose docling-core is not newer than ours") from error
