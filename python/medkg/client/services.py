"""All clients of one configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.base import Configurable, configure
from medkg.client.embedding import EmbeddingClient
from medkg.client.gpu import GpuClient
from medkg.client.native import native
from medkg.client.reranking import RerankingClient
from medkg.client.vector import VectorClient

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from medkg.config import ClientConfig, ClientOptions


class Services(Configurable):
    """The clients of one configuration. Can be shared by threads, pickled and used in forked children."""

    __slots__ = ("embedding", "gpu", "reranking", "vector")

    def __init__(self, config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> None:
        """As :class:`EmbeddingClient`."""
        shared: Any = native.Configuration(configure(config, fields))
        self._configuration = shared
        self.embedding = EmbeddingClient(shared)
        self.reranking = RerankingClient(shared)
        self.vector = VectorClient(shared)
        self.gpu = GpuClient(shared)

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


def connect(config: ClientConfig | None = None, /, **fields: Unpack[ClientOptions]) -> Services:
    """Make the clients of one configuration. Nothing is dialled until the first call.

    Args:
        config: The configuration. None means what the environment says (``MEDKG_ADDRESS`` and so on, ``MEDKG_CONFIG``
            for a file), as :meth:`ClientConfig.load` reads it, and the defaults.
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
