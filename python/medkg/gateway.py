"""HTTP in front of medkg's calls, for Starlette and FastAPI; it comes with `pip install 'medkg[gateway]'`.

`MedkgMiddleware` makes the tenant and the trace of an HTTP request the defaults of the calls inside it.
`exception_handlers` answers medkg's errors with `application/problem+json` (RFC 9457)::

    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    app = Starlette(middleware=[Middleware(MedkgMiddleware)], exception_handlers=exception_handlers)

The status of an answer comes from the one table of errors in the Rust client (`MedkgError.http_status`); nothing here
decides one. What a server or the network said stays inside: a caller gets our own words where the fault is not its
own, and the request id under which the log has the rest.

It refuses to know who may name which tenant: something in front of it has to.
"""

from __future__ import annotations

import logging
import math
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from medkg.call_context import context, resolve
from medkg.errors import MedkgError
from medkg.extras import packages_of

with packages_of("gateway", "starlette", user="medkg.gateway needs"):
    from starlette.responses import JSONResponse
    from starlette.websockets import WebSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["MedkgMiddleware", "exception_handlers", "problem"]

_log = logging.getLogger(__name__)

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE: Final = re.compile(r"[ -~]{1,256}=[ -~]{1,256}")
_TRACESTATE_MEMBERS: Final = 32
_TRACESTATE_CHARACTERS: Final = 512

_CALLERS_OWN: Final = frozenset({400, 404, 409, 429})
"""Statuses whose message is about what the caller sent, and is told to it."""
_IN_OUR_WORDS: Final = {
    401: "the service behind this one did not accept its identity",
    403: "the service behind this one refused the call",
    503: "the service cannot be reached now",
    504: "the service did not answer in time",
}
_RETRY_STATUSES: Final = frozenset({429, 503})
_UNEXPECTED: Final = 500
_WEBSOCKET_FAILED: Final = 1011


class MedkgMiddleware:
    """ASGI middleware: `X-Tenant-Id`, `traceparent` and `tracestate` of a request become defaults of its calls.

    A request without `X-Tenant-Id` leaves the tenant to the call or the client's configuration. One whose header is
    empty, malformed or there twice is not helped out: its calls are refused, as INVALID_ARGUMENT, before anything is
    sent. A broken trace header is ignored, as W3C Trace Context demands; where an OpenTelemetry span is active already
    (an instrumented server), that span is the parent and the header is left to it.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP and WebSocket goes through untouched."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        tenant = _header(scope, b"x-tenant-id", ", ")
        if tenant is not None:
            tenant = tenant or " "  # an empty default would count as none, and somebody else's tenant be used
        traceparent, tracestate = _trace(scope)
        with context(tenant=tenant, traceparent=traceparent, tracestate=tracestate):
            await self.app(scope, receive, send)


async def problem(connection: Any, error: Exception) -> JSONResponse | None:
    """Answer an error of medkg; for `exception_handlers`.

    The body has `title`, `status`, `detail`, `code`, `reason`, `request_id`, and `errors`, a list of `field` and
    `detail`, where arguments are wrong; what is not known is left out. `Retry-After` is there where waiting helps.

    Args:
        connection: The request. A WebSocket is closed with 1011 instead.
        error: A `MedkgError`.
    """
    if not isinstance(error, MedkgError):
        raise error
    status = error.http_status
    if status >= _UNEXPECTED:
        _log.error("a call failed: %s", error, exc_info=error)
    if isinstance(connection, WebSocket):
        await connection.close(_WEBSOCKET_FAILED, reason=error.reason or error.code)
        return None
    told = status in _CALLERS_OWN
    body = {
        "title": _title(status),
        "status": status,
        "detail": error.message if told else _IN_OUR_WORDS.get(status, "the service failed"),
        "code": error.code,
        "reason": error.reason,
        "request_id": error.request_id,
        "errors": [{"field": field, "detail": what} for field, what in error.field_violations] if told else [],
    }
    headers = {}
    if error.retry_after is not None and status in _RETRY_STATUSES:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    return JSONResponse(
        {name: value for name, value in body.items() if value not in ("", [])},
        status_code=status,
        headers=headers,
        media_type="application/problem+json",
    )


exception_handlers: Final[Mapping[Any, Callable[[Any, Exception], Awaitable[Any]]]] = {MedkgError: problem}
"""For Starlette's and FastAPI's argument of that name. Every subclass is found by its base."""


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 499 is nobody's but everybody's
        return "Call Failed"


def _header(scope: Scope, name: bytes, separator: str) -> str | None:
    """All values of a header as one, as HTTP puts them together; None if it is not there."""
    values = [value.decode("latin-1").strip() for key, value in scope["headers"] if key == name]
    return separator.join(values) if values else None


def _trace(scope: Scope) -> tuple[str | None, str | None]:
    """The trace of the request's headers; nothing where they are broken or something knows better."""
    _, _, known, _, _ = resolve()
    traceparent = _header(scope, b"traceparent", ", ")
    if known is not None or traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return None, None
    tracestate = _header(scope, b"tracestate", ",")
    if tracestate is None or len(tracestate) > _TRACESTATE_CHARACTERS:
        return traceparent, None
    members = [member.strip() for member in tracestate.split(",") if member.strip()]
    legal = 0 < len(members) <= _TRACESTATE_MEMBERS and all(map(_TRACESTATE.fullmatch, members))
    return traceparent, ",".join(members) if legal else None
