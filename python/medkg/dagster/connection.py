"""`MedkgConnection`: how a Dagster project reaches gpu-server.

Its fields are those of `medkg.ClientConfig`, under the same names as in `medkg.toml` and in the `MEDKG_*` variables. A
field left out means the client's own default, which lives in Rust only. Nothing is dialled while the resource starts:
Dagster ignores the no-retry wish of a failure raised there, so an unreachable server would be tried over and over.

Dagster sets a nested resource up once for each resource it is nested in. That costs nothing here: the connections are
Rust's, one pool for a process, which everything with the same settings shares.
"""

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import dagster as dg
from pydantic import Field, PrivateAttr

import medkg
from medkg.dagster.connection_options import CacheConfig, CoalesceConfig, FallbackConfig, RegistryConfig, TlsConfig
from medkg.dagster.failures import STEP_RETRIES

if TYPE_CHECKING:
    from typing_extensions import Self


class MedkgConnection(dg.ConfigurableResource[Any]):
    """Addresses, identity and behaviour of the clients; the resources of the clients are made over it.

    ```python
    connection = MedkgConnection(address=dg.EnvVar("MEDKG_ADDRESS"), tenant="clinic")
    dg.Definitions(
        resources={"connection": connection, "embedding": EmbeddingResource(connection=connection)}
    )
    ```
    """

    address: str | None = Field(
        default=None,
        description="Address of every service: https://HOST:PORT with TLS or http://HOST:PORT; or a name that leads to"
        " several servers: dns+https://HOST:PORT, srv+https://NAME.",
    )
    addresses: list[str] | None = Field(default=None, description="Several addresses instead of one.")
    registry: RegistryConfig | None = Field(default=None, description="Servers are those registered there instead.")
    name_server: str | None = Field(
        default=None, description="IP:PORT of the name server to ask, instead of the system's."
    )
    embedding_addresses: list[str] | None = Field(default=None, description="Addresses of the embedding service alone.")
    reranking_addresses: list[str] | None = Field(default=None, description="Addresses of the reranking service alone.")
    vector_addresses: list[str] | None = Field(
        default=None, description="The one address of the server that holds the collections."
    )
    gpu_addresses: list[str] | None = Field(
        default=None, description="The one address of the server whose GPU is meant."
    )
    allow_plaintext: bool | None = Field(
        default=None, description="Whether http:// may go to other machines; without it, to this one only."
    )
    tenant: str | None = Field(
        default=None, description="Tenant of a run that has no tag medkg/tenant_id; none means that such a run fails."
    )
    timeout: float | None = Field(default=None, description="Seconds for one request, its retries included.")
    connect_timeout: float | None = Field(default=None, description="Seconds to connect, TLS included.")
    max_attempts: int | None = Field(default=None, description="Attempts of one request; 1 turns retries off.")
    backoff_initial: float | None = Field(default=None, description="Shortest wait between attempts, in seconds.")
    backoff_max: float | None = Field(default=None, description="Longest wait between attempts, in seconds.")
    retry_budget: float | None = Field(default=None, description="Retries allowed as a share of all calls.")
    breaker_failures: int | None = Field(
        default=None, description="Faults of the network in a row that open an address' circuit breaker; never a GPU's."
    )
    breaker_cooldown: float | None = Field(default=None, description="Seconds it stays open before a call may probe.")
    max_connections: int | None = Field(default=None, description="Connections to one address.")
    max_pending: int | None = Field(default=None, description="Calls that are out at one address at once.")
    max_connection_age: float | None = Field(default=None, description="Seconds before a connection is replaced.")
    hedge_after: float | None = Field(
        default=None, description="Seconds after which a small call is made at another server too; none: never."
    )
    max_batch_texts: int | None = Field(default=None, description="Texts in one request; more are split.")
    max_batch_bytes: int | None = Field(default=None, description="Bytes in one request; more are split.")
    max_batch_tokens: int | None = Field(default=None, description="Estimated tokens in one request; more are split.")
    max_concurrent_batches: int | None = Field(default=None, description="Requests in flight at once for one call.")
    tls: TlsConfig | None = Field(default=None, description="TLS identity; needed for https:// addresses.")
    cache: CacheConfig | None = Field(default=None, description="Keeps embeddings; none: each is computed each time.")
    fallback: FallbackConfig | None = Field(default=None, description="What calls may make do with; none: nothing.")
    coalesce: CoalesceConfig | None = Field(default=None, description="Small calls share requests; none: they do not.")
    step_retries: int = Field(
        default=STEP_RETRIES, ge=0, description="Retries of the step, by Dagster, after faults of the network."
    )
    require_gpu: bool = Field(
        default=False, description="Refuse to work with servers that compute on a CPU: the step fails, with no retry."
    )

    _connected: "dict[str, medkg.Services]" = PrivateAttr(default_factory=dict)

    @classmethod
    def of(cls, config: medkg.ClientConfig, **settings: Any) -> "Self":
        """The connection that a `medkg.ClientConfig` describes, as `ClientConfig.load` makes it of a file.

        Args:
            config: The client's configuration.
            **settings: Fields that only the connection has: `step_retries`, `require_gpu`.
        """
        return cls(**{**_plain(config), **settings})

    def client_config(self) -> medkg.ClientConfig:
        """The same settings as a `medkg.ClientConfig`; what cannot be used is told when a client is made of it."""
        given: dict[str, Any] = {}
        for field in fields(medkg.ClientConfig):
            value = getattr(self, field.name)
            group = GROUPS.get(field.name)
            given[field.name] = value if group is None or value is None else group(**value.model_dump())
        return medkg.ClientConfig(**given)

    def connect(self) -> medkg.Services:
        """Services outside a run, for sensors and scripts: the tenant is the configured one, the trace is new.

        The caller closes them. In an asset or op use a resource's `for_run`: it alone sees the run's tenant.

        Raises:
            medkg.ConfigError: The settings cannot be used; every problem is listed.
        """
        return medkg.connect(self.client_config())

    def services_of(self, tenant: str) -> medkg.Services:
        """The clients of a tenant, closed with the step. Not one set for all: in a thread only the client knows whose.

        Raises:
            medkg.ConfigError: The settings cannot be used; every problem is listed.
        """
        services = self._connected.get(tenant)
        if services is None:
            services = self._connected[tenant] = medkg.connect(replace(self.client_config(), tenant=tenant))
        return services

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Lets the connections of this step's process go."""
        del context
        connected, self._connected = self._connected, {}
        for services in connected.values():
            services.close()


GROUPS: Final[dict[str, type[Any]]] = {
    "tls": medkg.TlsConfig,
    "registry": medkg.RegistryConfig,
    "cache": medkg.CacheConfig,
    "fallback": medkg.FallbackConfig,
    "coalesce": medkg.CoalesceConfig,
}
"""The fields of a configuration that are groups of settings themselves."""


def _plain(config: object) -> dict[str, Any]:
    """What was said in a configuration, as Dagster has it: groups as tables, paths as text, sequences as lists."""
    said: dict[str, Any] = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if value is None:
            continue
        if is_dataclass(value):
            said[field.name] = _plain(value)
        elif isinstance(value, (str, bool, int, float)):
            said[field.name] = value
        else:
            said[field.name] = str(value) if hasattr(value, "__fspath__") else list(value)
    return said
