"""One trace from the run to the forward pass, as a collector gets it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

import medkg

dg = pytest.importorskip("dagster")
from dagster._core.definitions.reconstruct import ReconstructableJob  # noqa: E402 - after the check above

from medkg.dagster import TENANT_TAG, trace_id_of_run  # noqa: E402 - as above
from medkg.local import LocalServer  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator

JOB = str(Path(__file__).parent / "traced_job.py")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - as gRPC calls it
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Any]:
        return [span for span in list(self.spans) if span.trace_id.hex() == trace_id]

    def wait_for(self, trace_id: str, names: set[str]) -> list[Any]:
        deadline = time.monotonic() + 60
        while not names <= {span.name for span in self.trace(trace_id)}:
            assert time.monotonic() < deadline, sorted({span.name for span in self.trace(trace_id)})
            time.sleep(0.05)
        return self.trace(trace_id)


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    collecting = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def exporting(collector: tuple[Collector, str], gpu_server_binary: Path, minilm_dir: Path) -> Iterator[LocalServer]:
    """A server that sends its spans to the collector."""
    with LocalServer(
        gpu_server_binary,
        services=("embedding", "gpu"),
        embedding_models={"minilm": minilm_dir},
        arguments=("--otlp-endpoint", collector[1]),
    ) as server:
        yield server


def number(span: Any, name: str) -> int:
    (found,) = [attribute.value for attribute in span.attributes if attribute.key == name]
    assert found.HasField("int_value"), found
    return found.int_value


@pytest.mark.requirement("isolation 11.2")
@pytest.mark.requirement("isolation 11.4")
def test_a_run_is_one_trace_down_to_the_forward_pass(
    collector: tuple[Collector, str], exporting: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collecting, endpoint = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with (
        dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance,
        dg.execute_job(
            ReconstructableJob.for_file(JOB, "traced_job"),
            instance=instance,
            run_config={"resources": {"gpu_services": {"config": {"address": exporting.address}}}},
            tags={TENANT_TAG: "clinic"},
        ) as result,
    ):
        assert result.success
        trace_id = trace_id_of_run(result.run_id)
    rpc = "EmbeddingService/GenerateEmbeddings"
    names = {"passages", "vectors", rpc, "queue", "batch", "forward"}
    spans = collecting.wait_for(trace_id, names)
    by_id = {span.span_id: span for span in spans}

    def way(span: Any) -> list[str]:
        """Names from the root to a span."""
        parent = by_id.get(span.parent_span_id)
        assert parent is not None or not span.parent_span_id, f"{span.name} has a parent that no collector got"
        return [*(way(parent) if parent is not None else []), span.name]

    ways = {tuple(way(span)) for span in spans}
    call = ("passages", "vectors", rpc)
    assert {call, (*call, "queue"), (*call, "batch"), (*call, "batch", "forward")} <= ways
    for span in spans:
        parent = by_id.get(span.parent_span_id)
        if parent is not None and span.name in {"queue", "batch", "forward"}:
            assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano, f"{span.name} ends after {parent.name}"


def test_calls_that_share_a_batch_see_it_in_their_own_traces(
    collector: tuple[Collector, str], exporting: LocalServer
) -> None:
    traces = [f"{number:032x}" for number in range(0xA0, 0xA8)]
    texts = ["word " * 100] * 8

    def call(trace: str) -> None:
        with medkg.context(traceparent=f"00-{trace}-00f067aa0ba902b7-01"):
            client.embed(texts)

    with (
        medkg.EmbeddingClient(address=exporting.address, tenant="clinic") as client,
        ThreadPoolExecutor(len(traces)) as pool,
    ):
        list(pool.map(call, traces))
    names = {"queue", "batch", "forward"}
    for trace in traces:
        spans = collector[0].wait_for(trace, names)
        batches = [span for span in spans if span.name == "batch"]
        assert sum(span.name == "queue" for span in spans) == 1
        assert all(1 <= number(batch, "calls") <= len(traces) for batch in batches)
        assert all(number(batch, "inputs") >= 1 and number(batch, "tokens") >= 100 for batch in batches)
