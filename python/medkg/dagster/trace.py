"""Which trace a step's calls belong to.

The first that is there wins: the active OpenTelemetry span (the client injects it itself, call by call), the run tag
`dagster_otel/external_trace_context`, the run tag `medkg/traceparent`, and last an id derived from the run, so that all
steps of a run share one trace with nothing set up. The derived trace id is the one dagster-otel derives: the traces
join. Nothing here writes a tag: run tags written by step processes lose updates.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkg.dagster.step import StepIdentity

EXTERNAL_TRACE_TAG = "dagster_otel/external_trace_context"
"""Run tag of dagster-otel: a JSON object with `traceparent` and perhaps `tracestate`."""
TRACEPARENT_TAG = "medkg/traceparent"
"""Run tag with a W3C `traceparent`."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}")
_EXTERNAL_KEYS = ("traceparent", "tracestate")


@dataclass(frozen=True)
class TraceContext:
    """A place in a trace."""

    trace_id: str
    """32 lower-case hexadecimal digits."""
    traceparent: str | None
    """W3C `traceparent` to send; None where the active span decides, which the client reads at each call."""
    tracestate: str | None = None
    """W3C `tracestate` to send."""


def trace_id_of_run(run_id: str) -> str:
    """The trace id of a run that nobody gave one: the first 16 bytes of the SHA-256 of its id, in hexadecimal."""
    return sha256(run_id.encode()).digest()[:16].hex()


def resolve_trace(step: StepIdentity) -> TraceContext:
    """Decides the trace of a step. A tag that is no valid context is passed over: a bad trace must not fail a run."""
    active = _active_trace_id()
    if active is not None:
        return TraceContext(trace_id=active, traceparent=None)
    tagged = _external(step.tags.get(EXTERNAL_TRACE_TAG)) or _valid(step.tags.get(TRACEPARENT_TAG))
    return tagged or _derived(step)


def _derived(step: StepIdentity) -> TraceContext:
    trace_id = trace_id_of_run(step.run_id)
    span_id = sha256(f"{step.run_id}:{step.step_key}".encode()).digest()[:8].hex()
    return TraceContext(trace_id=trace_id, traceparent=f"00-{trace_id}-{span_id}-01")


def _external(tag: str | None) -> TraceContext | None:
    if tag is None:
        return None
    try:
        carrier: object = json.loads(tag)
    except ValueError:
        return None
    if not isinstance(carrier, dict):
        return None
    traceparent, tracestate = (carrier.get(key) for key in _EXTERNAL_KEYS)
    return _valid(traceparent, tracestate)


def _valid(traceparent: object, tracestate: object = None) -> TraceContext | None:
    if not isinstance(traceparent, str):
        return None
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or not match["trace"].strip("0") or not match["span"].strip("0"):
        return None
    return TraceContext(
        trace_id=match["trace"],
        traceparent=match.group(),
        tracestate=tracestate if isinstance(tracestate, str) and tracestate else None,
    )


def _active_trace_id() -> str | None:
    """Trace id of the active span. A process that never imported OpenTelemetry has none, so nothing is imported."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - only where the process has it already

    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else None
