"""Defaults for the calls inside a block: tenant and trace.

Each value of a call is looked for in this order: the argument of the call, the innermost :func:`context` that has it,
the active OpenTelemetry span (only where something else has imported ``opentelemetry`` already), and then the client's
configuration (tenant) or a fresh random value (trace, request id).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CallOptions", "context"]


class CallOptions(TypedDict, total=False):
    """Keyword arguments that every call takes.

    Attributes:
        tenant: For whom the call is made.
        timeout: Seconds that the whole call may take, also if it is split into several requests.
        traceparent: W3C ``traceparent`` of the caller's span.
        tracestate: W3C ``tracestate`` that belongs to it.
        request_id: Names the call in logs; 1 to 128 printable ASCII characters without spaces.
    """

    tenant: str | None
    timeout: float | None
    traceparent: str | None
    tracestate: str | None
    request_id: str | None


class _Defaults(NamedTuple):
    tenant: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None


_defaults: ContextVar[_Defaults] = ContextVar("medkg_defaults", default=_Defaults())  # noqa: B039 - a tuple is immutable


@contextmanager
def context(
    *, tenant: str | None = None, traceparent: str | None = None, tracestate: str | None = None
) -> Iterator[None]:
    """Give defaults to the calls inside the block, in this thread or asyncio task.

    Other threads do not see them; ``contextvars.copy_context().run`` takes them along. A block that ends in another
    context than it began in (a generator that somebody else drives) ends all the same.

    Blocks nest; an inner one overrides what it names and inherits the rest. ``tracestate`` belongs to the
    ``traceparent`` it is given with.

    Example:
        >>> with context(tenant="clinic-7"):
        ...     pass
    """
    outer = _defaults.get()
    if traceparent is None:
        traceparent, tracestate = outer.traceparent, outer.tracestate
    inner = _Defaults(outer.tenant if tenant is None else tenant, traceparent, tracestate)
    token = _defaults.set(inner)
    try:
        yield
    finally:
        try:
            _defaults.reset(token)
        except ValueError:  # the token belongs to another context; a copy of that one may still hold our value
            if _defaults.get() is inner:
                _defaults.set(outer)


def resolve(
    *,
    tenant: str | None = None,
    timeout: float | None = None,
    traceparent: str | None = None,
    tracestate: str | None = None,
    request_id: str | None = None,
) -> tuple[str | None, float | None, str | None, str | None, str | None]:
    """The options of a call, with defaults filled in, as the extension takes them."""
    defaults = _defaults.get()
    if traceparent is None:
        traceparent, tracestate = defaults.traceparent, defaults.tracestate
    if traceparent is None:
        traceparent, tracestate = _active_span()
    return (tenant if tenant is not None else defaults.tenant, timeout, traceparent, tracestate, request_id)


def _active_span() -> tuple[str | None, str | None]:
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None, None
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return None, None
    parent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
    return parent, span.trace_state.to_header() or None
