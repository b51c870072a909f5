"""medkg.gateway: tenant and trace of an HTTP request reach the calls inside it, and errors become HTTP answers."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

import medkg
from medkg.call_context import resolve
from medkg.gateway import MedkgMiddleware, exception_handlers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request
    from starlette.types import ASGIApp
    from starlette.websockets import WebSocket

    from medkg.local import LocalServer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


def request(app: ASGIApp, headers: Sequence[tuple[str, str]] = (), kind: str = "http") -> Answer:
    """One request, straight through ASGI."""
    sent: list[Any] = []
    opening = {"type": "http.request"} if kind == "http" else {"type": "websocket.connect"}
    scope = {
        "type": kind,
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }

    async def receive() -> dict[str, Any]:
        return opening

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    if kind == "websocket":
        return Answer(sent[-1]["code"], {}, sent)
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, json.loads(b"".join(part.get("body", b"") for part in sent[1:])))


def serve(endpoint: Callable[[Any], Awaitable[Any]], *, websocket: bool = False) -> Starlette:
    """An application with one route behind the middleware."""
    route = WebSocketRoute("/", endpoint) if websocket else Route("/", endpoint)
    return Starlette(routes=[route], middleware=[Middleware(MedkgMiddleware)], exception_handlers=exception_handlers)


async def show(_request: Request) -> JSONResponse:
    """What a call made now would carry."""
    tenant, _timeout, traceparent, tracestate, _request_id = resolve()
    return JSONResponse([tenant, traceparent, tracestate])


def failing(error: Exception) -> Starlette:
    """An application that raises."""

    async def fail(_: Request) -> JSONResponse:
        raise error

    return serve(fail)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], [None, None, None]),
        ([("X-Tenant-Id", "clinic-7")], ["clinic-7", None, None]),
        ([("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")], [None, PARENT, "a=1,b=2"]),
        ([("tracestate", "a=1")], [None, None, None]),
        ([("traceparent", PARENT), ("tracestate", "no pair")], [None, PARENT, None]),
        ([("traceparent", PARENT), ("tracestate", ",".join(f"k{n}=v" for n in range(33)))], [None, PARENT, None]),
        ([("traceparent", PARENT.upper())], [None, None, None]),
        ([("traceparent", PARENT.replace("b7ad6b7169203331", "0" * 16))], [None, None, None]),
        ([("traceparent", "ff" + PARENT[2:])], [None, None, None]),
        ([("traceparent", PARENT), ("traceparent", PARENT)], [None, None, None]),
    ],
)
def test_headers_become_the_defaults_of_calls(headers: Any, expected: list[str | None]) -> None:
    assert request(serve(show), headers).body == expected
    assert resolve()[:2] == (None, None), "nothing is left behind"


def test_a_trace_that_is_known_already_is_kept() -> None:
    with medkg.context(traceparent=PARENT):
        other = PARENT.replace("0af7", "1111")
        assert request(serve(show), [("traceparent", other)]).body == [None, PARENT, None]


@pytest.mark.parametrize("tenants", [[""], ["  "], ["a b"], ["a", "b"], ["münchen"]])
def test_a_bad_tenant_is_refused_and_no_other_takes_its_place(tenants: list[str]) -> None:
    async def call(_: Request) -> JSONResponse:
        with medkg.connect(address="http://127.0.0.1:1", tenant="configured") as services:
            return JSONResponse(services.gpu.status().detail)

    answer = request(serve(call), [("X-Tenant-Id", tenant) for tenant in tenants])
    assert (answer.status, answer.body["code"]) == (400, "INVALID_ARGUMENT")
    assert answer.body["reason"] == "TENANT_INVALID"
    assert [error["field"] for error in answer.body["errors"]] == ["tenant"]


def test_an_answer_is_a_problem_with_all_that_helps() -> None:
    error = medkg.EmbeddingValidationError(
        "EmbeddingService/GenerateEmbeddings at http://10.0.0.3:7070: INVALID_ARGUMENT: texts[3] is empty",
        code="INVALID_ARGUMENT",
        reason="INVALID_FIELD",
        message="texts[3] is empty; leave it out",
        endpoint="http://10.0.0.3:7070",
        request_id="order-66",
        field_violations=[("texts[3]", "is empty; leave it out")],
        http_status=400,
    )
    answer = request(failing(error))
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status == 400
    assert "retry-after" not in answer.headers
    assert answer.body == {
        "title": "Bad Request",
        "status": 400,
        "detail": "texts[3] is empty; leave it out",
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_FIELD",
        "request_id": "order-66",
        "errors": [{"field": "texts[3]", "detail": "is empty; leave it out"}],
    }


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (medkg.RateLimitedError("full", http_status=429, retry_after=0.2), 429, "1"),
        (medkg.CircuitOpenError("open", http_status=503, retry_after=4.01), 503, "5"),
        (medkg.ServiceTimeoutError("late", http_status=504, retry_after=1.0), 504, None),
        (medkg.GpuLostError("Xid 79 on node-3", reason="GPU_LOST", http_status=500, retry_after=1.0), 500, None),
        (medkg.ServiceError("gone", http_status=499), 499, None),
        (medkg.ConfigError("bad", field_violations=[("tls.key_file", "/secret/key.pem is missing")]), 500, None),
    ],
)
def test_waiting_is_advised_only_where_it_helps(error: medkg.MedkgError, status: int, retry_after: str | None) -> None:
    answer = request(failing(error))
    assert answer.status == answer.body["status"] == status
    assert answer.headers.get("retry-after") == retry_after
    for inside in ("node-3", "secret"):
        assert inside not in json.dumps(answer.body)


def test_errors_of_others_are_not_ours() -> None:
    with pytest.raises(KeyError):
        request(failing(KeyError("x")))


def test_a_websocket_is_closed() -> None:
    async def accept_and_fail(socket: WebSocket) -> None:
        await socket.accept()
        raise medkg.GpuLostError("Xid 79", reason="GPU_LOST")

    answer = request(serve(accept_and_fail, websocket=True), kind="websocket")
    assert answer.status == 1011
    assert answer.body[-1]["reason"] == "GPU_LOST"


def test_an_unreachable_server_is_a_503_that_names_no_address(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    async def call(_: Request) -> JSONResponse:
        async with medkg.connect_async(address=f"http://127.0.0.1:{port}", tenant="demo", max_attempts=1) as services:
            return JSONResponse((await services.gpu.status()).detail)

    answer = request(serve(call))
    assert (answer.status, answer.body["code"]) == (503, "UNAVAILABLE")
    assert str(port) not in json.dumps(answer.body)
    assert str(port) in caplog.text, "the log has the cause"
    assert answer.body["request_id"] in caplog.text


def test_tenant_and_trace_reach_the_server_and_its_errors_come_back(server: LocalServer) -> None:
    async def call(_: Request) -> JSONResponse:
        async with medkg.connect_async(address=server.address, tenant="configured") as services:
            await services.embedding.embed(["fine", ""])
        return JSONResponse(None)

    headers = [("X-Tenant-Id", "gateway-7"), ("traceparent", PARENT.replace("0af7", "9a7e"))]
    answer = request(serve(call), headers)
    assert (answer.status, answer.body["errors"][0]["field"]) == (400, "texts[1]")
    logged = [event for event in server.events() if event.get("request_id") == answer.body["request_id"]]
    assert {event["tenant"] for event in logged} == {"gateway-7"}
    assert {event["trace_id"] for event in logged} == {PARENT.replace("0af7", "9a7e")[3:35]}


def test_without_starlette_the_extra_is_named() -> None:
    code = "import sys; sys.modules['starlette'] = None; import medkg.gateway"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "pip install 'medkg[gateway]'" in ended.stderr
