"""Whose data a step works on and which trace its calls belong to: the order, and that a missing tenant fails closed."""

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import dagster as dg
import pytest

from medkg.dagster import (
    EXTERNAL_TRACE_TAG,
    TENANT_TAG,
    TRACEPARENT_TAG,
    GpuServicesResource,
    TenantError,
    resolve_tenant,
    resolve_trace,
)
from medkg.dagster.step import StepIdentity
from medkg.local import LocalServer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"
TENANTS = dg.MultiPartitionsDefinition(
    {
        "tenant": dg.StaticPartitionsDefinition(["clinic-a", "clinic-b"]),
        "year": dg.StaticPartitionsDefinition(["2025"]),
    }
)


def step(**tags: str) -> StepIdentity:
    return StepIdentity("run", "step", {name.replace("__", "/"): value for name, value in tags.items()})


@dg.asset
def seen(context: dg.AssetExecutionContext, gpu_services: GpuServicesResource) -> dict[str, str]:
    """Makes a real call and tells what the clients were bound to."""
    with gpu_services.for_run(context) as run:
        return {"tenant": run.tenant, "trace": run.trace_id, "model": run.embedding.models()[0].name}


@dg.asset(partitions_def=TENANTS)
def seen_of_partition(context: dg.AssetExecutionContext, gpu_services: GpuServicesResource) -> str:
    """The same for a partition."""
    with gpu_services.for_run(context) as run:
        return run.tenant


def materialize(asset: dg.AssetsDefinition, **arguments: Any) -> dg.ExecuteInProcessResult:
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([asset], instance=instance, raise_on_error=False, **arguments)


def test_a_step_can_be_called_directly_in_a_users_own_test(server: LocalServer) -> None:
    resource = GpuServicesResource(address=server.address)
    context = dg.build_asset_context(run_tags={TENANT_TAG: "from-tag"})
    told = seen(context, gpu_services=resource)
    assert told["tenant"] == "from-tag"
    assert StepIdentity.of(dg.build_op_context()).step_key == "direct invocation"


@pytest.mark.requirement("isolation 11.1")
@pytest.mark.parametrize(
    ("tags", "configured", "expected"),
    [({TENANT_TAG: "from-tag"}, "configured", "from-tag"), ({}, "configured", "configured")],
    ids=["tag-over-configuration", "configuration"],
)
def test_the_tenant_of_a_run_reaches_the_server(
    server: LocalServer, tags: dict[str, str], configured: str, expected: str
) -> None:
    services = GpuServicesResource(address=server.address, tenant=configured)
    result = materialize(seen, tags=tags, resources={"gpu_services": services})
    told = result.output_for_node("seen")
    assert told["tenant"] == expected
    assert told["trace"] == sha256(result.run_id.encode()).digest()[:16].hex()
    calls = [line for line in server.events() if line.get("trace_id") == told["trace"]]
    assert calls
    assert {line.get("tenant") for line in calls} == {expected}


def test_the_partition_names_the_tenant_over_the_tag(server: LocalServer) -> None:
    result = materialize(
        seen_of_partition,
        partition_key=dg.MultiPartitionKey({"tenant": "clinic-b", "year": "2025"}),
        tags={TENANT_TAG: "from-tag"},
        resources={"gpu_services": GpuServicesResource(address=server.address)},
    )
    assert result.output_for_node("seen_of_partition") == "clinic-b"


@pytest.mark.parametrize("tags", [{}, {TENANT_TAG: "  "}], ids=["none", "blank-tag"])
def test_without_a_tenant_the_step_fails_and_nothing_is_sent(server: LocalServer, tags: dict[str, str]) -> None:
    tenant = "configured" if tags else None
    before = len(server.events())
    result = materialize(
        seen, tags=tags, resources={"gpu_services": GpuServicesResource(address=server.address, tenant=tenant)}
    )
    assert not result.success
    (event,) = (e for e in result.all_events if e.is_step_failure)
    reported = event.step_failure_data.user_failure_data
    assert reported is not None
    assert reported.metadata["medkg/failure_class"].value == "CONFIGURATION"
    assert TENANT_TAG in str(reported.description)
    assert len(server.events()) == before


def tenants_of_listings(server: LocalServer, after: int) -> set[object]:
    calls = [line for line in server.events()[after:] if str(line.get("method", "")).endswith("ListCollections")]
    assert calls
    return {line.get("tenant") for line in calls}


@pytest.mark.requirement("isolation 11.1")
def test_threads_inside_for_run_call_for_the_runs_tenant(server: LocalServer) -> None:
    @dg.op
    def threaded(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
        with gpu_services.for_run(context) as run, ThreadPoolExecutor(1) as threads:
            threads.submit(run.vector.collections).result()

    services = GpuServicesResource(address=server.address, tenant="configured")

    @dg.job(resource_defs={"gpu_services": services})
    def job() -> None:
        threaded()

    before = len(server.events())
    assert job.execute_in_process(tags={TENANT_TAG: "from-tag"}).success
    assert tenants_of_listings(server, before) == {"from-tag"}


@pytest.mark.requirement("isolation 11.1")
def test_an_async_generator_op_keeps_the_runs_tenant_after_its_first_yield(server: LocalServer) -> None:
    @dg.op(out={"first": dg.Out(int), "second": dg.Out(int)})
    async def generating(context: dg.OpExecutionContext, gpu_services: GpuServicesResource):
        with gpu_services.for_run(context) as run:
            yield dg.Output(1, "first")
            yield dg.Output(len(run.vector.collections()), "second")

    services = GpuServicesResource(address=server.address, tenant="configured")

    @dg.job(resource_defs={"gpu_services": services})
    def job() -> None:
        generating()

    before = len(server.events())
    assert job.execute_in_process(tags={TENANT_TAG: "from-tag"}).success
    assert tenants_of_listings(server, before) == {"from-tag"}


def test_an_explicit_tenant_wins_and_a_range_over_two_tenants_is_refused() -> None:
    tagged = StepIdentity("run", "step", {TENANT_TAG: "from-tag"})
    assert resolve_tenant(tagged, explicit="explicit", default="configured") == "explicit"
    keys = [dg.MultiPartitionKey({"tenant": name, "year": "2025"}) for name in ("clinic-a", "clinic-b")]
    with pytest.raises(TenantError, match="2 tenants"):
        resolve_tenant(StepIdentity("run", "step", {}, keys), default="configured")


@pytest.mark.requirement("isolation 11.2")
def test_the_trace_comes_from_the_external_tag_then_ours_then_the_run() -> None:
    external = json.dumps({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"})
    ours = f"00-{OTHER}-{SPAN}-01"
    both = resolve_trace(StepIdentity("run", "step", {EXTERNAL_TRACE_TAG: external, TRACEPARENT_TAG: ours}))
    assert (both.trace_id, both.traceparent, both.tracestate) == (TRACE, f"00-{TRACE}-{SPAN}-01", "vendor=1")
    assert resolve_trace(StepIdentity("run", "step", {TRACEPARENT_TAG: ours})).trace_id == OTHER
    derived = resolve_trace(StepIdentity("run", "step"))
    assert derived.trace_id == sha256(b"run").digest()[:16].hex()
    assert derived != resolve_trace(StepIdentity("run", "another step"))
    assert derived.trace_id == resolve_trace(StepIdentity("run", "another step")).trace_id


@pytest.mark.parametrize(
    "tag", ["", "{", "[]", "{}", '{"traceparent": 1}', json.dumps({"traceparent": f"00-{'0' * 32}-{SPAN}-01"})]
)
def test_a_malformed_external_context_is_passed_over(tag: str) -> None:
    assert resolve_trace(StepIdentity("run", "step", {EXTERNAL_TRACE_TAG: tag})) == resolve_trace(
        StepIdentity("run", "step")
    )


@pytest.mark.requirement("isolation 11.2")
@pytest.mark.requirement("isolation 11.4")
def test_the_active_opentelemetry_span_reaches_the_server(server: LocalServer) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace

    tracer = sdk.TracerProvider().get_tracer("test")

    @dg.op
    def traced(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> str:
        with tracer.start_as_current_span("step") as span, gpu_services.for_run(context) as run:
            run.embedding.models()
            assert run.trace_id == trace.format_trace_id(span.get_span_context().trace_id)
            return run.trace_id

    @dg.job(resource_defs={"gpu_services": GpuServicesResource(address=server.address, tenant="clinic")})
    def job() -> None:
        traced()

    trace_id = job.execute_in_process(tags={TRACEPARENT_TAG: f"00-{TRACE}-{SPAN}-01"}).output_for_node("traced")
    assert any(line.get("trace_id") == trace_id for line in server.events())
