"""What every client has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from medkg.config import ClientConfig, variables

if TYPE_CHECKING:
    from os import PathLike
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from medkg.config import ClientOptions
    from medkg.results import EndpointInfo

__all__ = ["Client", "Configurable", "Half", "NativeT", "configure"]

Half: TypeAlias = type[Any]
"""The class of the Rust half of a client; it takes a configuration, or one that is shared."""


class Native(Protocol):
    """The Rust half of a client."""

    @property
    def configuration(self) -> Configuration:
        """The configuration."""
        ...

    def endpoints(self) -> list[EndpointInfo]:
        """What is known of the servers."""
        ...

    def reset_breakers(self, address: str | None) -> int:
        """Close breakers; how many were not closed."""
        ...

    def close(self) -> None:
        """Let the connections go."""


NativeT = TypeVar("NativeT", bound=Native)


class Configuration(Protocol):
    """The Rust half of a configuration."""

    @property
    def config(self) -> ClientConfig:
        """What calls made now would use."""
        ...

    def reload(self, config: ClientConfig) -> None:
        """Go over to another one."""

    def watch(self, path: str | PathLike[str] | None, environment: dict[str, str], arguments: ClientConfig) -> None:
        """Go over to what a file says, now and whenever it changes."""


def configure(config: ClientConfig | None, fields: ClientOptions) -> ClientConfig:
    """A configuration with some fields changed; without one, what the environment and the fields say."""
    if config is None:
        return ClientConfig.load(**fields)
    return replace(config, **fields) if fields else config


class Configurable:
    """What has a configuration that can be exchanged while calls are made."""

    __slots__ = ("_configuration",)

    _configuration: Configuration

    @property
    def config(self) -> ClientConfig:
        """The configuration that calls made now use."""
        return self._configuration.config

    def reload(self, config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> None:
        """Go over to another configuration. Calls that are out end with the old one; no call is lost.

        Addresses that stay, with the same settings for their connections, keep their connections and breakers. A file
        that was followed is followed no longer.

        Args:
            config: The new one; None means the present one. ``ClientConfig.load()`` reads environment and file anew.
            **fields: Fields that differ from it.

        Raises:
            ConfigError: It cannot be used, and nothing has changed. Every problem is listed.
        """
        self._configuration.reload(replace(self.config if config is None else config, **fields))

    def watch_config(
        self, path: str | PathLike[str] | None = None, *, env: bool = True, **fields: Unpack[ClientOptions]
    ) -> None:
        """Go over to what a file says, as :meth:`ClientConfig.load` reads it, now and whenever the file changes.

        The file is looked at before a call is made, once a second at most. What cannot be used changes nothing and is
        told once, as an error in the log ``medkg``. Forked children go on following it; pickled copies do not.

        Args:
            path: As for :meth:`ClientConfig.load`.
            env: As for :meth:`ClientConfig.load`; the environment is read now only.
            **fields: Fields that the file cannot change.

        Raises:
            ConfigError: The file cannot be used now, or none is named. Nothing has changed.
        """
        self._configuration.watch(path, variables(env=env), ClientConfig(**fields))

    def __reduce__(self) -> tuple[type[Self], tuple[ClientConfig]]:
        """Travel as the configuration."""
        return type(self), (self.config,)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.config!r})"


class Client(Configurable, Generic[NativeT]):
    """What every client has: a configuration and a Rust half made from it."""

    __slots__ = ("_native",)

    _half: ClassVar[Half]

    def __init__(self, config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> None:
        """Take a configuration, or fields of :class:`~medkg.config.ClientConfig` by name, or both; nothing is dialled.

        Without a configuration, fields that are not given are those of the environment, as :func:`medkg.connect` reads
        it.

        Raises:
            ConfigError: The configuration cannot be used; every problem is listed.
        """
        self._native: NativeT = self._half(configure(config, fields))
        self._configuration = self._native.configuration

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
