"""How a client behaves.

``None`` means the default, and the defaults live in the Rust client only. Nothing is checked here: making a client does
that, and lists every problem at once. The classes are frozen and can be pickled, so a configuration can travel to other
processes, which is how clients travel. Files and the environment are read by the Rust client too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from typing_extensions import Unpack

__all__ = [
    "CacheConfig",
    "ClientConfig",
    "ClientOptions",
    "CoalesceConfig",
    "FallbackConfig",
    "RegistryConfig",
    "TlsConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """TLS files, in PEM. They are read when a process first needs them.

    Attributes:
        ca_file: Authorities that servers are checked against. Required.
        cert_file: This client's certificate chain, where servers ask for one.
        key_file: Its private key.
        server_name: The name that the server's certificate must have, where it is not the host of the address.
    """

    ca_file: str | PathLike[str] | None = None
    cert_file: str | PathLike[str] | None = None
    key_file: str | PathLike[str] | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """A cache of embeddings: ``EmbeddingClient.embed`` computes only what is not in it.

    An embedding is found again by tenant, model digest, prompt, truncation, element type, dimensions and text. Clients
    of a process that have the same settings share what is in memory. Streams and sparse embeddings are not cached.

    Attributes:
        memory_bytes: Most bytes in this process. Default: 256 MiB.
        ttl: Seconds that an embedding is kept. Default: a week.
        redis: ``redis://HOST:PORT``, ``rediss://`` (TLS) or ``unix:///PATH``: shared by all processes. While it is down
            or slow, embeddings are computed. None: memory only.
    """

    memory_bytes: int | None = None
    ttl: float | None = None
    redis: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryConfig:
    """A registry in Redis, in which servers say that they are there (``gpu-server --registry``).

    Attributes:
        redis: ``redis://HOST:PORT``, ``rediss://`` (TLS) or ``unix:///PATH``. Required.
        cluster: Which servers are meant; those of a cluster are interchangeable. Default: ``"default"``.
    """

    redis: str | None = field(default=None, repr=False)
    cluster: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackConfig:
    """What calls may make do with where the network fails; an answer that rests on it says why in ``degraded``.

    Asked for in this order, after every other server of ``addresses``. A fault of a GPU, and whatever else a server
    answers, is raised as it is.

    Attributes:
        addresses: Servers of a second cluster, written as in ``ClientConfig.addresses``, with the same models: they get
            the requests for embeddings and rankings that no server of the first takes. Streams are not continued there.
        stale_cache: Whether ``embed`` may answer from the cache alone where no server says which model it has now: with
            the model that this client was told of last. All of the call's texts must be there. Needs ``cache``.
        dense_order: Whether documents that cannot be reranked may come in the order of their ``first_stage_scores``.
            Without scores for all of them the error is raised.
    """

    addresses: Sequence[str] | None = None
    stale_cache: bool | None = None
    dense_order: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalesceConfig:
    """Sends small calls of ``embed`` that are made at the same time in one request, each waiting for others a little.

    Calls of one tenant that embed in the same way share a request. Each gets its own rows, and a wrong argument is an
    error of its call only; any other failure is the failure of all that shared the request. It goes out under the
    request id and trace of the first of them. Calls with ``progress`` and streams go alone.

    Attributes:
        max_wait: Seconds that a call waits for others at most. Default: 0.002.
        max_texts: Most texts of one request; calls of as many or more go alone. Default: 64.
    """

    max_wait: float | None = None
    max_texts: int | None = None


class ClientOptions(TypedDict, total=False):
    """The fields of :class:`ClientConfig` as keywords, for type checkers."""

    address: str | None
    addresses: Sequence[str] | None
    registry: RegistryConfig | None
    name_server: str | None
    embedding_addresses: Sequence[str] | None
    reranking_addresses: Sequence[str] | None
    vector_addresses: Sequence[str] | None
    gpu_addresses: Sequence[str] | None
    allow_plaintext: bool | None
    tenant: str | None
    timeout: float | None
    connect_timeout: float | None
    max_attempts: int | None
    backoff_initial: float | None
    backoff_max: float | None
    retry_budget: float | None
    breaker_failures: int | None
    breaker_cooldown: float | None
    max_connections: int | None
    max_pending: int | None
    max_connection_age: float | None
    hedge_after: float | None
    max_batch_texts: int | None
    max_batch_bytes: int | None
    max_batch_tokens: int | None
    max_concurrent_batches: int | None
    tls: TlsConfig | None
    cache: CacheConfig | None
    fallback: FallbackConfig | None
    coalesce: CoalesceConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How a client behaves; every field is optional.

    Attributes:
        address: ``https://HOST:PORT`` (TLS 1.3) or ``http://HOST:PORT`` (plaintext, on the loopback only unless
            ``allow_plaintext`` is set); or a name that leads to several servers: ``dns+https://HOST:PORT`` (each A
            record is a server, or each AAAA record where there is no A record) or ``srv+https://NAME`` (each SRV
            record). A name is looked up again when its TTL is over, and when a server fails.
        addresses: Several servers, instead of ``address``: interchangeable for embedding and reranking. Vector search
            and the GPU service use the first one only, because each server holds its own collections and leases.
        registry: Servers are those that are registered there, instead of ``address`` and ``addresses``.
        name_server: ``IP:PORT`` of the name server that is asked for names, instead of the system's.
        embedding_addresses: Addresses for the embedding service only, instead of ``addresses``.
        reranking_addresses: As ``embedding_addresses``, for reranking.
        vector_addresses: The one address of the server that holds the collections.
        gpu_addresses: The one address of the server whose GPU is meant.
        allow_plaintext: Whether ``http`` may go to other machines, where anybody on the way can read the texts: for a
            network that is protected by other means.
        tenant: Tenant of calls that name none.
        timeout: Seconds that one request may take, retries included. A call whose input is split into several requests
            grants it to each; ``timeout=`` given to a call bounds the whole call instead.
        connect_timeout: Seconds that making a connection may take, TLS included.
        max_attempts: Most attempts for one request; 1 turns every retry off.
        backoff_initial: Seconds of the shortest wait between attempts.
        backoff_max: Seconds of the longest.
        retry_budget: Retries per call, over all calls, beyond a small reserve; 0 turns every counted retry off.
        breaker_failures: Failures of the network in a row after which nothing is sent to an address for a while.
        breaker_cooldown: Seconds of the first such while; each further one is twice as long, up to eight times.
        max_connections: Most connections to one address; another one is made once the others carry 64 calls each.
        max_pending: Most calls that are out at one address at once; more wait.
        max_connection_age: Seconds after which new calls go over a new connection. Default: half an hour.
        hedge_after: Seconds after which a small call that may be made twice is made at another server too; the first
            answer counts. None: never. Set it to what 95 of 100 calls stay below.
        max_batch_texts: Most texts, or query-document pairs, in one request; more are split.
        max_batch_bytes: Most bytes of texts or vectors in one request; more are split.
        max_batch_tokens: Most tokens of texts in one request, estimated as a quarter of their bytes; more are split.
        max_concurrent_batches: Most requests of one call that are out at once.
        tls: Authorities and identity for ``https`` addresses.
        cache: Keeps embeddings; None: every text is embedded each time.
        fallback: What calls may make do with where the network fails; None: with nothing.
        coalesce: Sends small calls that are made at the same time in one request; None: each call has its own.
    """

    address: str | None = None
    addresses: Sequence[str] | None = None
    registry: RegistryConfig | None = None
    name_server: str | None = None
    embedding_addresses: Sequence[str] | None = None
    reranking_addresses: Sequence[str] | None = None
    vector_addresses: Sequence[str] | None = None
    gpu_addresses: Sequence[str] | None = None
    allow_plaintext: bool | None = None
    tenant: str | None = None
    timeout: float | None = None
    connect_timeout: float | None = None
    max_attempts: int | None = None
    backoff_initial: float | None = None
    backoff_max: float | None = None
    retry_budget: float | None = None
    breaker_failures: int | None = None
    breaker_cooldown: float | None = None
    max_connections: int | None = None
    max_pending: int | None = None
    max_connection_age: float | None = None
    hedge_after: float | None = None
    max_batch_texts: int | None = None
    max_batch_bytes: int | None = None
    max_batch_tokens: int | None = None
    max_concurrent_batches: int | None = None
    tls: TlsConfig | None = None
    cache: CacheConfig | None = None
    fallback: FallbackConfig | None = None
    coalesce: CoalesceConfig | None = None

    @classmethod
    def load(
        cls, path: str | PathLike[str] | None = None, *, env: bool = True, **fields: Unpack[ClientOptions]
    ) -> ClientConfig:
        """Put a configuration together: each field from ``fields``, the environment or a file, in that order.

        Args:
            path: A ``.toml``, ``.yaml`` or ``.yml`` file whose keys are the fields; groups such as ``tls`` are tables;
                paths in it are relative to its folder. None: the file that ``MEDKG_CONFIG`` names, if it is set.
            env: Whether the environment is read: ``MEDKG_`` and the field's name in capitals, ``MEDKG_TLS_CA_FILE`` and
                ``MEDKG_CACHE_REDIS`` for the fields of ``tls`` and ``cache``, lists separated by commas.
            **fields: Fields that are said here. ``None`` says nothing.

        Raises:
            ConfigError: It cannot be used. Every problem is listed with its place, also keys and variables that are
                misspelt.

        Example:
            >>> import medkg
            >>> medkg.ClientConfig.load(env=False, tenant="demo").tenant
            'demo'
        """
        from medkg.client.native import native  # noqa: PLC0415 (loads the extension)

        return native.load_config(path, variables(env=env), ClientConfig(**fields))[0]


def variables(*, env: bool = True) -> dict[str, str]:
    """The environment variables that may be fields; none where they are not wanted."""
    return {name: value for name, value in os.environ.items() if name.startswith("MEDKG_")} if env else {}
