"""One connection, and the resources of single clients over it."""

import dataclasses
from typing import Any

import dagster as dg
import pytest

import medkg
from medkg.dagster import (
    CacheConfig,
    EmbeddingResource,
    GpuResource,
    GpuServicesResource,
    MedkgConnection,
    RegistryConfig,
    RerankingResource,
    TlsConfig,
    VectorResource,
)
from medkg.local import LocalServer

pytestmark = [
    pytest.mark.requirement("isolation 11.2"),
    # Dagster 1.13 warns of a property of its own that it reads for every nested resource.
    pytest.mark.filterwarnings("ignore:.*InitResourceContext.dagster_run"),
]

EVERYTHING: dict[str, Any] = {
    "address": "https://a:1",
    "addresses": ["https://e:1", "https://f:1"],
    "registry": {"redis": "rediss://r:1", "cluster": "main"},
    "name_server": "10.0.0.1:53",
    "embedding_addresses": ["dns+https://a:1"],
    "reranking_addresses": ["srv+https://b.example.org"],
    "vector_addresses": ["https://c:1"],
    "gpu_addresses": ["https://d:1"],
    "allow_plaintext": False,
    "tenant": "clinic",
    "timeout": 20.0,
    "connect_timeout": 2.0,
    "max_attempts": 2,
    "backoff_initial": 0.1,
    "backoff_max": 1.0,
    "retry_budget": 0.1,
    "breaker_failures": 3,
    "breaker_cooldown": 7.0,
    "max_connections": 2,
    "max_pending": 10,
    "max_connection_age": 60.0,
    "hedge_after": 0.2,
    "max_batch_texts": 64,
    "max_batch_bytes": 1_000_000,
    "max_batch_tokens": 9_000,
    "max_concurrent_batches": 2,
    "tls": {"ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "key.pem", "server_name": "gpu"},
    "cache": {"memory_bytes": 1_000, "ttl": 60.0, "redis": "rediss://c:1"},
    "fallback": {"addresses": ["https://g:1"], "stale_cache": True, "dense_order": True},
    "coalesce": {"max_wait": 0.01, "max_texts": 8},
}


def test_every_option_of_the_client_is_one_of_the_connection() -> None:
    assert set(EVERYTHING) == {field.name for field in dataclasses.fields(medkg.ClientConfig)}
    config = MedkgConnection(**EVERYTHING).client_config()
    assert dataclasses.asdict(config) == EVERYTHING
    assert MedkgConnection.of(config).client_config() == config, "both ways"


@pytest.mark.parametrize("resource", [MedkgConnection, GpuServicesResource])
def test_no_default_of_the_client_is_repeated(resource: type[MedkgConnection]) -> None:
    assert resource().client_config() == medkg.ClientConfig()


@dg.op
def ask_each_client(
    context: dg.OpExecutionContext,
    embedding: EmbeddingResource,
    reranking: RerankingResource,
    vector: VectorResource,
    gpu: GpuResource,
) -> list[Any]:
    """A call by each client."""
    with embedding.for_run(context) as embedder, reranking.for_run(context) as ranker:
        told = embedder.embed(["pyrexia"]).vectors.shape, len(ranker.rerank("fever", ["pyrexia"]).documents)
    with vector.for_run(context) as store, gpu.for_run(context) as device:
        return [*told, store.collections(), device.status().state]


def over(connection: MedkgConnection) -> dict[str, Any]:
    """The four resources over one connection."""
    return {
        "embedding": EmbeddingResource(connection=connection),
        "reranking": RerankingResource(connection=connection),
        "vector": VectorResource(connection=connection),
        "gpu": GpuResource(connection=connection),
    }


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "nested only"])
def test_four_clients_work_over_one_connection(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, *, registered: bool
) -> None:
    monkeypatch.setenv("CLINIC_SERVER", server.address)
    connection = MedkgConnection(address=dg.EnvVar("CLINIC_SERVER"), tenant="connected-clinic")

    @dg.job(resource_defs={**over(connection), **({"connection": connection} if registered else {})})
    def each() -> None:
        ask_each_client()

    assert each.execute_in_process().output_for_node("ask_each_client") == [(1, 384), 1, [], "ready"]


def test_one_client_is_enough_for_an_asset(server: LocalServer) -> None:
    @dg.asset
    def vectors(context: dg.AssetExecutionContext, embedding: EmbeddingResource) -> int:
        with embedding.for_run(context, tenant="other") as client:
            return len(client.embed(["pyrexia", "fracture"]).vectors)

    embedding = EmbeddingResource(connection=MedkgConnection(address=server.address))
    assert dg.materialize([vectors], resources={"embedding": embedding}).output_for_node("vectors") == 2


def test_nothing_is_dialled_and_nothing_fails_while_a_resource_starts() -> None:
    @dg.op
    def calls_nobody(embedding: EmbeddingResource) -> str:
        return str(embedding.connection.address)

    @dg.job(resource_defs=over(MedkgConnection(address="not-an-address")))
    def idle() -> None:
        calls_nobody()

    assert idle.execute_in_process().output_for_node("calls_nobody") == "not-an-address"


def test_variables_are_looked_up_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_CA", "/etc/medkg/ca.pem")
    monkeypatch.setenv("CLINIC_REDIS", "rediss://:password@redis:6379")

    @dg.op
    def configured(embedding: EmbeddingResource) -> medkg.ClientConfig:
        return embedding.connection.client_config()

    connection = MedkgConnection(
        tls=TlsConfig(ca_file=dg.EnvVar("CLINIC_CA")), cache=CacheConfig(redis=dg.EnvVar("CLINIC_REDIS"))
    )

    @dg.job(resource_defs={"embedding": EmbeddingResource(connection=connection)})
    def looked_up() -> None:
        configured()

    assert looked_up.execute_in_process().output_for_node("configured") == medkg.ClientConfig(
        tls=medkg.TlsConfig(ca_file="/etc/medkg/ca.pem"), cache=medkg.CacheConfig(redis="rediss://:password@redis:6379")
    )


@pytest.mark.parametrize("group", [CacheConfig, RegistryConfig])
def test_urls_that_may_hold_a_password_are_secrets(group: type[dg.Config]) -> None:
    schema = group.to_fields_dict()
    assert schema["redis"].is_secret
    assert [name for name, field in schema.items() if field.is_secret] == ["redis"]
