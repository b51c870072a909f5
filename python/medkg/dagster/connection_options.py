"""The groups of a connection's settings, as Dagster's configuration has them.

They are the groups of `medkg.ClientConfig`, field for field, and say nothing that a field left out would mean: that is
the client's own default, in Rust. They are `dg.Config` and no resources, so that `dg.EnvVar` works in them. URLs that
may hold a password are secrets: Dagster's pages show their variable's name, never what was written.
"""

from typing import Final

import dagster as dg
from pydantic import Field
from pydantic.config import JsonDict

_URL: Final[JsonDict] = {"dagster__is_secret": True}


class TlsConfig(dg.Config):
    """Files with this worker's identity and the authorities it trusts, in PEM: paths, so no secret is configured."""

    ca_file: str | None = Field(default=None, description="Certificates of the authorities that sign the servers.")
    cert_file: str | None = Field(default=None, description="Certificate chain of this worker.")
    key_file: str | None = Field(default=None, description="Private key of that certificate.")
    server_name: str | None = Field(default=None, description="Name to check in the server's certificate.")


class RegistryConfig(dg.Config):
    """A registry in Redis, in which gpu-servers say that they are there."""

    redis: str | None = Field(
        default=None, description="rediss://HOST:PORT, redis:// or unix:///PATH.", json_schema_extra=_URL
    )
    cluster: str | None = Field(default=None, description="Which servers are meant.")


class CacheConfig(dg.Config):
    """A cache of embeddings: only what is not in it is computed."""

    memory_bytes: int | None = Field(default=None, description="Most bytes in one process.")
    ttl: float | None = Field(default=None, description="Seconds that an embedding is kept.")
    redis: str | None = Field(
        default=None,
        description="rediss://HOST:PORT, redis:// or unix:///PATH, shared by all processes; none: memory only.",
        json_schema_extra=_URL,
    )


class FallbackConfig(dg.Config):
    """What calls may make do with where the network fails. A fault of a GPU is never covered up."""

    addresses: list[str] | None = Field(default=None, description="Servers of a second cluster with the same models.")
    stale_cache: bool | None = Field(default=None, description="Whether the cache alone may answer.")
    dense_order: bool | None = Field(
        default=None, description="Whether documents may stay in the order of the first stage."
    )


class CoalesceConfig(dg.Config):
    """Sends small calls of `embed` that are made at the same time in one request."""

    max_wait: float | None = Field(default=None, description="Seconds that a call waits for others at most.")
    max_texts: int | None = Field(default=None, description="Most texts of one such request.")
