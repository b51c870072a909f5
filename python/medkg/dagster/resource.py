"""`GpuServicesResource`: medkg's four clients in a Dagster project.

A field left out means the client's own default, which lives in Rust only. Nothing is dialled while the resource starts:
Dagster ignores the no-retry wish of a failure raised there, so an unreachable server would be tried over and over. The
connections belong to the process of the step and are closed with it.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field, PrivateAttr

import medkg
from medkg.dagster.failures import STEP_RETRIES, step_failures
from medkg.dagster.step import StepContext, StepIdentity
from medkg.dagster.tenant import resolve_tenant
from medkg.dagster.trace import resolve_trace

if TYPE_CHECKING:
    from collections.abc import Iterator


class RetryConfig(dg.Config):
    """How often and how long one call is tried again inside the client."""

    max_attempts: int | None = Field(default=None, description="Attempts of one call, the first one included.")
    backoff_initial: float | None = Field(default=None, description="Wait before the second attempt, in seconds.")
    backoff_max: float | None = Field(default=None, description="Longest wait between two attempts, in seconds.")
    retry_budget: float | None = Field(default=None, description="Retries allowed as a share of all calls.")


class BreakerConfig(dg.Config):
    """The circuit breaker in front of each endpoint. GPU failures never count for it."""

    failures: int | None = Field(default=None, description="Faults of the network in a row that open it.")
    cooldown: float | None = Field(default=None, description="Seconds it stays open before one call may probe.")


class TlsConfig(dg.Config):
    """Files with this worker's identity and the authorities it trusts, in PEM: paths, so no secret is configured."""

    ca_file: str | None = Field(default=None, description="Certificates of the authorities that sign the servers.")
    cert_file: str | None = Field(default=None, description="Certificate chain of this worker.")
    key_file: str | None = Field(default=None, description="Private key of that certificate.")
    server_name: str | None = Field(default=None, description="Name to check in the server's certificate.")


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


class GpuServicesResource(dg.ConfigurableResource[Any]):
    """Clients of gpu-server for assets, ops and asset checks.

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

    address: str | None = Field(
        default=None, description="Address of every service: https://host:port with TLS, or http://host:port."
    )
    addresses: list[str] | None = Field(default=None, description="Several addresses instead of one.")
    embedding_addresses: list[str] | None = Field(default=None, description="Addresses of the embedding service alone.")
    reranking_addresses: list[str] | None = Field(default=None, description="Addresses of the reranking service alone.")
    vector_addresses: list[str] | None = Field(default=None, description="Addresses of the vector service alone.")
    gpu_addresses: list[str] | None = Field(default=None, description="Addresses of the GPU service alone.")
    allow_plaintext: bool | None = Field(
        default=None, description="Whether http:// may go to other machines; without it, to this one only."
    )
    tenant: str | None = Field(
        default=None, description="Tenant of a run that has no tag medkg/tenant_id; none means that such a run fails."
    )
    timeout: float | None = Field(default=None, description="Seconds for one call, its retries included.")
    connect_timeout: float | None = Field(default=None, description="Seconds to connect.")
    max_batch_texts: int | None = Field(default=None, description="Texts in one request; more are split.")
    max_batch_bytes: int | None = Field(default=None, description="Bytes in one request; more are split.")
    max_concurrent_batches: int | None = Field(default=None, description="Requests in flight at once for one call.")
    retry: RetryConfig = Field(default=RetryConfig(), description="Retries inside a call.")
    breaker: BreakerConfig = Field(default=BreakerConfig(), description="Circuit breaker of each endpoint.")
    tls: TlsConfig | None = Field(default=None, description="TLS identity; needed for https:// addresses.")
    step_retries: int = Field(
        default=STEP_RETRIES, ge=0, description="Retries of the step, by Dagster, after faults of the network."
    )

    _services: "dict[str, medkg.Services]" = PrivateAttr(default_factory=dict)

    def client_config(self) -> "medkg.ClientConfig":
        """The same settings as a `medkg.ClientConfig`.

        Raises:
            medkg.ConfigError: A setting is out of range, or two contradict each other.
        """
        settings: dict[str, Any] = {name: getattr(self, name) for name in _CLIENT_FIELDS}
        settings |= self.retry.model_dump()
        settings |= {f"breaker_{name}": value for name, value in self.breaker.model_dump().items()}
        if self.tls is not None:
            settings["tls"] = medkg.TlsConfig(**self.tls.model_dump())
        return medkg.ClientConfig(**{name: value for name, value in settings.items() if value is not None})

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> "Iterator[RunServices]":
        """The clients, bound to the tenant and the trace of the step, with failures turned into Dagster's terms.

        Inside, every call carries the step's tenant and trace, and errors become what `step_failures` says. The
        tenant is the clients' own, so that it holds in any thread and task; the trace is known only in the thread or
        task of the block and the tasks it starts (other threads: `contextvars.copy_context().run`).

        Args:
            context: The context Dagster gave to the asset, op or asset check.
            tenant: Names the tenant here, over partition, tag and configuration.

        Raises:
            dg.RetryRequested: A call failed for the network.
            dg.Failure: A call failed otherwise, or nothing names a tenant.
        """
        with step_failures(context, max_retries=self.step_retries):
            step = StepIdentity.of(context)
            owner = resolve_tenant(step, explicit=tenant, default=self.tenant)
            trace = resolve_trace(step)
            services = self._connected(owner)
            with medkg.context(tenant=owner, traceparent=trace.traceparent, tracestate=trace.tracestate):
                yield RunServices(
                    embedding=services.embedding,
                    reranking=services.reranking,
                    vector=services.vector,
                    gpu=services.gpu,
                    tenant=owner,
                    trace_id=trace.trace_id,
                )

    def connect(self) -> "medkg.Services":
        """Services outside a run, for sensors and scripts: the tenant is the configured one, the trace is new.

        The caller closes them. In an asset or op use `for_run`: it alone sees the run's tenant.
        """
        return medkg.connect(self.client_config())

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Closes the connections of this step's process."""
        del context
        connected, self._services = self._services, {}
        for services in connected.values():
            services.close()

    def _connected(self, tenant: str) -> "medkg.Services":
        """The clients of a tenant. Not one set for all: a tenant that only the context knows is lost in a thread."""
        services = self._services.get(tenant)
        if services is None:
            services = self._services[tenant] = medkg.connect(replace(self.client_config(), tenant=tenant))
        return services


_CLIENT_FIELDS = (
    "address",
    "addresses",
    "embedding_addresses",
    "reranking_addresses",
    "vector_addresses",
    "gpu_addresses",
    "allow_plaintext",
    "tenant",
    "timeout",
    "connect_timeout",
    "max_batch_texts",
    "max_batch_bytes",
    "max_concurrent_batches",
)
