"""All clients of one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.base import configure
from medkg.client.embedding import EmbeddingClient
from medkg.client.gpu import GpuClient
from medkg.client.reranking import RerankingClient
from medkg.client.vector import VectorClient

if TYPE_CHECKING:
    from typing_extensions import Self

    from medkg.config import ClientConfig


class Services:
    """The clients of one configuration. Can be shared by threads, pickled and used in forked children."""

    __slots__ = ("config", "embedding", "gpu", "reranking", "vector")

    def __init__(self, config: ClientConfig | None = None, /, **fields: Any) -> None:
        """As :class:`EmbeddingClient`."""
        self.config = configure(config, fields)
        self.embedding = EmbeddingClient(self.config)
        self.reranking = RerankingClient(self.config)
        self.vector = VectorClient(self.config)
        self.gpu = GpuClient(self.config)

    def close(self) -> None:
        """Let the connections go; further calls raise."""
        for client in (self.embedding, self.reranking, self.vector, self.gpu):
            client.close()

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


def connect(config: ClientConfig | None = None, /, **fields: Any) -> Services:
    """Make the clients of one configuration. Nothing is dialled until the first call.

    Args:
        config: The configuration; None means the defaults.
        **fields: Fields of :class:`~medkg.config.ClientConfig` that differ from it.

    Raises:
        ConfigError: The configuration cannot be used; every problem is listed.

    Example:
        >>> import medkg
        >>> with medkg.connect(address="http://127.0.0.1:7070", tenant="demo") as services:
        ...     services.embedding.config.tenant
        'demo'
    """
    return Services(config, **fields)
