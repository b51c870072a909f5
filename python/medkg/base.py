"""What every client has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from medkg.config import ClientConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from medkg.results import EndpointInfo

__all__ = ["Client", "NativeT", "configure"]


class Native(Protocol):
    """The Rust half of a client."""

    def endpoints(self) -> list[EndpointInfo]:
        """What is known of the servers."""
        ...

    def reset_breakers(self, address: str | None) -> int:
        """Close breakers; how many were not closed."""
        ...

    def close(self) -> None:
        """Let the connections go."""


NativeT = TypeVar("NativeT", bound=Native)


def configure(config: ClientConfig | None, fields: dict[str, Any]) -> ClientConfig:
    """A configuration with some fields changed."""
    return replace(config or ClientConfig(), **fields)


class Client(Generic[NativeT]):
    """What every client has: a configuration and a Rust half made from it."""

    __slots__ = ("_config", "_native")

    def __init__(self, config: ClientConfig, half: Callable[[ClientConfig], NativeT]) -> None:
        """Check the configuration; nothing is dialled."""
        self._config = config
        self._native = half(config)

    def endpoints(self) -> list[EndpointInfo]:
        """What is known of the servers of this client, in the order of the configuration; nothing is sent.

        Clients of a process that use an address with the same settings share what is known of it.
        """
        return self._native.endpoints()

    def reset_breakers(self, address: str | None = None) -> int:
        """Close the circuit breaker of an address, or of all: you know that the server is well again.

        Returns:
            How many were not closed.

        Raises:
            ValidationError: The client has no such address.
        """
        return self._native.reset_breakers(address)

    @property
    def config(self) -> ClientConfig:
        """The configuration."""
        return self._config

    def close(self) -> None:
        """Let the connections go; further calls raise. Connections that others share stay."""
        self._native.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[ClientConfig]]:
        """Travel as the configuration."""
        return type(self), (self._config,)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self._config!r})"
