"""The clients bound to a step, and `GpuServicesResource`, which gives all four."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import medkg
from medkg.dagster import metadata
from medkg.dagster.call_log import CallLog
from medkg.dagster.connection import MedkgConnection
from medkg.dagster.device_rule import refuse_cpu
from medkg.dagster.failures import step_failures
from medkg.dagster.step import StepContext, StepIdentity
from medkg.dagster.tenant import resolve_tenant
from medkg.dagster.trace import resolve_trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dagster as dg

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunServices:
    """The clients, bound to one step of a run; valid inside `GpuServicesResource.for_run`."""

    embedding: "medkg.EmbeddingClient"
    """Texts to vectors."""
    reranking: "medkg.RerankingClient"
    """Orders passages by how well they answer a query."""
    vector: "medkg.VectorClient"
    """Collections of vectors, searched exactly."""
    gpu: "medkg.GpuClient"
    """State of the device, leases of its memory."""
    tenant: str
    """Whose data the calls are for."""
    trace_id: str
    """The trace the server's spans and log lines carry."""
    calls: CallLog = field(default_factory=lambda: CallLog(_log.debug))
    """The calls of the step so far."""

    def metadata(self) -> "dict[str, dg.MetadataValue]":
        """What a person wants to see of an asset or op that used these clients, for its output's metadata.

        Usage (calls, texts, tokens, cache hits, retries, batches, seconds in the queue and on the device), a picture of
        the calls' latencies, the server's devices, and the trace. To be asked inside `for_run`.
        """
        return {**self.calls.metadata(), **metadata.devices(self.gpu), **metadata.trace(self.trace_id)}


@contextmanager
def run_services(
    connection: MedkgConnection, context: StepContext, tenant: str | None = None
) -> "Iterator[RunServices]":
    """The clients of a connection, bound to a step: what every resource's `for_run` does.

    Inside, every call carries the step's tenant and trace, and errors become what `step_failures` says. The tenant is
    the clients' own, so that it holds in any thread and task; the trace is known only in the thread or task of the
    block and the tasks it starts (other threads: `contextvars.copy_context().run`).

    Args:
        connection: How the servers are reached.
        context: The context Dagster gave to the asset, op or asset check.
        tenant: Names the tenant here, over partition, tag and configuration.

    Raises:
        dg.RetryRequested: A call failed for the network.
        dg.Failure: A call failed otherwise, nothing names a tenant, or a server computes on a CPU against
            `require_gpu`.
    """
    with step_failures(context, max_retries=connection.step_retries):
        step = StepIdentity.of(context)
        owner = resolve_tenant(step, explicit=tenant, default=connection.tenant)
        found = resolve_trace(step)
        services = connection.services_of(owner)
        with medkg.context(tenant=owner, traceparent=found.traceparent, tracestate=found.tracestate):
            if connection.require_gpu:
                refuse_cpu(services)
            calls = CallLog(context.log.debug)
            yield RunServices(
                embedding=calls.watch("embedding", services.embedding),
                reranking=calls.watch("reranking", services.reranking),
                vector=calls.watch("vector", services.vector),
                gpu=calls.watch("gpu", services.gpu),
                tenant=owner,
                trace_id=found.trace_id,
                calls=calls,
            )


class GpuServicesResource(MedkgConnection):
    """A connection and all four clients in one resource, for assets, ops and asset checks.

    ```python
    @dg.asset
    def vectors(context: dg.AssetExecutionContext, gpu_services: GpuServicesResource):
        with gpu_services.for_run(context) as run:
            return run.embedding.embed(["acute kidney injury"]).vectors
    ```

    The tenant of a run comes from its tag `medkg/tenant_id`; `tenant` here is what a run without one gets. A fault of
    the network is retried inside the call first, then by Dagster as a retry of the step; a GPU failure is never
    retried, and under `gpu_fail_fast` it ends the run.
    """

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> "Iterator[RunServices]":
        """The clients, bound to the tenant and the trace of the step, with failures turned into Dagster's terms.

        Args, errors and what holds in the block are those of `run_services`.
        """
        with run_services(self, context, tenant) as run:
            yield run
