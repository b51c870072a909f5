"""Which servers there are, and how they are."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

from medkg.base import configure
from medkg.client.native import native
from medkg.errors import ConfigError, ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self, Unpack

    from medkg.config import ClientConfig, ClientOptions
    from medkg.results import EndpointInfo, RegisteredServer

__all__ = ["Registration", "ServiceRegistry"]

Noun: TypeAlias = Literal["embedding", "reranking", "vector", "gpu"]
NOUNS: tuple[Noun, ...] = ("embedding", "reranking", "vector", "gpu")


class Registration:
    """A server that this process keeps registered, until :meth:`leave` or the end of the ``with`` block."""

    __slots__ = ("_native",)

    def __init__(self, half: native.Registration) -> None:
        """Made by :meth:`ServiceRegistry.register`."""
        self._native = half

    def leave(self) -> None:
        """Take the server out. Where this is not called, the lease runs out soon after the process has ended."""
        self._native.leave()

    def __enter__(self) -> Self:
        """Leave at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Leave."""
        self.leave()


class ServiceRegistry:
    """Lists the servers of a configuration, with health and circuit breakers, and registers servers.

    A ``gpu-server`` that is started with ``--registry`` registers itself, and takes itself out when it drains. Where
    servers are known by addresses or names instead, they are listed too; there is nothing to register then.

    Example:
        >>> import medkg
        >>> registry = medkg.ServiceRegistry(address="http://127.0.0.1:9")
        >>> [server.serving for server in registry.endpoints("embedding")]
        ['unknown']
    """

    __slots__ = ("_native", "config")

    def __init__(self, config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> None:
        """As :class:`medkg.EmbeddingClient`; nothing is dialled.

        Raises:
            ConfigError: The configuration cannot be used; every problem is listed.
        """
        self.config = configure(config, fields)
        self._native = native.Registry(self.config)

    def servers(self) -> list[RegisteredServer]:
        """Every server that is registered, in the order of the addresses.

        Raises:
            ConfigError: The configuration has no ``registry``.
            ServiceUnavailableError: Redis does not answer.
        """
        return self._native.servers()

    def endpoints(self, service: Noun, *, timeout: float = 2.0) -> list[EndpointInfo]:
        """The servers of a service, each of which is asked for its health.

        Breakers, load and the last failure are what this process knows of them. A server that does not answer is listed
        with ``serving="unknown"`` and why (``last_failure``); asking counts neither as a call nor as a failure.

        Args:
            service: ``"embedding"``, ``"reranking"``, ``"vector"`` or ``"gpu"``.
            timeout: Seconds that a server has to answer.

        Raises:
            ServiceUnavailableError: No server was found.
            ConfigError: Several vector or GPU servers were found, each of which holds its own collections and leases.
        """
        return self._native.endpoints(service, timeout)

    def services(self, *, timeout: float = 2.0) -> dict[Noun, list[EndpointInfo]]:
        """:meth:`endpoints` of every service that has servers."""
        found: dict[Noun, list[EndpointInfo]] = {}
        for service in NOUNS:
            with suppress(ConfigError, ServiceUnavailableError):
                found[service] = self.endpoints(service, timeout=timeout)
        return found

    def register(self, address: str, services: Sequence[Noun], *, lease: float | None = None) -> Registration:
        """Register a server that does not do so itself, and keep it registered.

        Args:
            address: ``http://HOST:PORT`` or ``https://HOST:PORT``, as clients reach it.
            services: What it serves.
            lease: Seconds for which it is believed to be there after this process has said so. Default: 15.

        Raises:
            ConfigError: The configuration has no ``registry``, or an argument makes no sense.
            ServiceUnavailableError: Redis does not answer; nothing is registered.
        """
        return Registration(self._native.register(address, list(services), lease))

    def deregister(self, address: str) -> bool:
        """Take a server out; True if it was there. One that registers itself comes back within its lease.

        Raises:
            ConfigError: The configuration has no ``registry``.
            ServiceUnavailableError: Redis does not answer.
        """
        return self._native.deregister(address)

    def close(self) -> None:
        """Let the connections go; further calls raise."""
        self._native.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[ClientConfig]]:
        """Travel as the configuration."""
        return type(self), (self.config,)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.config!r})"
