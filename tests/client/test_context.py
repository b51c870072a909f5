"""Tenant and trace: who is asked for them, in which order, and that they are on the wire."""

from __future__ import annotations

import asyncio
import threading

import pytest

import medkg

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.requirement("isolation 5.2")
def test_the_argument_comes_before_the_context_and_that_before_the_configuration(peer) -> None:
    client = medkg.GpuClient(address=peer.address, tenant="configured")
    client.status()
    with medkg.context(tenant="around", traceparent=PARENT, tracestate="vendor=1"):
        client.status()
        client.status(tenant="given", traceparent=OTHER, request_id="order-66")
        with medkg.context(tenant="inner"):
            client.status()
    client.status()
    assert [call["x-tenant-id"] for call in peer.metadata] == ["configured", "around", "given", "inner", "configured"]
    traces = [call["traceparent"] for call in peer.metadata]
    assert traces[1:4] == [PARENT, OTHER, PARENT]
    assert [call.get("tracestate") for call in peer.metadata] == [None, "vendor=1", None, "vendor=1", None]
    assert traces[0] != traces[4], "without a parent, every call has a trace of its own"
    assert peer.metadata[2]["x-request-id"] == "order-66"


def test_a_context_belongs_to_its_thread_and_its_task(peer) -> None:
    client = medkg.GpuClient(address=peer.address, tenant="configured")
    with medkg.context(tenant="main"):
        thread = threading.Thread(target=client.status)
        thread.start()
        thread.join()
    assert peer.metadata[-1]["x-tenant-id"] == "configured"

    async def call(tenant: str) -> None:
        with medkg.context(tenant=tenant):
            await asyncio.sleep(0)
            await medkg.AsyncGpuClient(address=peer.address).status()

    async def both() -> None:
        await asyncio.gather(call("one"), call("two"))

    asyncio.run(both())
    assert {call["x-tenant-id"] for call in peer.metadata[-2:]} == {"one", "two"}


@pytest.mark.requirement("isolation 5.2")
def test_the_active_span_is_the_parent(peer) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    span_context = trace.SpanContext(
        trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
        span_id=0x00F067AA0BA902B7,
        is_remote=False,
        trace_flags=trace.TraceFlags(1),
        trace_state=trace.TraceState([("vendor", "1")]),
    )
    client = medkg.GpuClient(address=peer.address, tenant="demo")
    with trace.use_span(trace.NonRecordingSpan(span_context)):
        client.status()
        client.status(traceparent=OTHER)
        with medkg.context(traceparent=OTHER):
            client.status()
    assert [call["traceparent"] for call in peer.metadata] == [PARENT, OTHER, OTHER]
    assert [call.get("tracestate") for call in peer.metadata] == ["vendor=1", None, None]


@pytest.mark.parametrize(
    ("field", "value"), [("tenant", "a b"), ("traceparent", "00-zz"), ("request_id", ""), ("timeout", -1.0)]
)
def test_a_wrong_option_is_named_and_nothing_is_sent(peer, field: str, value: object) -> None:
    client = medkg.GpuClient(address=peer.address, tenant="demo")
    with pytest.raises(medkg.ValidationError) as caught:
        client.status(**{field: value})
    assert caught.value.field_violations[0][0] == field
    assert peer.metadata == []


def test_an_option_that_does_not_exist_is_refused(peer) -> None:
    with pytest.raises(TypeError, match="tennant"):
        medkg.GpuClient(address=peer.address, tenant="demo").status(tennant="x")
