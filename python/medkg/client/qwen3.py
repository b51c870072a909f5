"""Embeddings in the shape that callers of an in-process Qwen3 service know: texts in, lists of floats out.

:class:`GPUEmbeddingClient` is what such a caller may rely on; a test can stand in for it, and so can a client of its
own. :class:`Qwen3GRPCClient` is :class:`~medkg.EmbeddingClient` with one model and ``embed_texts``. It has no network
code, no default and no error of its own, and it never computes in this process: without a GPU there is an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from medkg.client.embedding import EmbeddingClient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self, Unpack

    from medkg.call_context import CallOptions
    from medkg.config import ClientConfig, ClientOptions
    from medkg.results import EmbeddingResult, EndpointInfo, ModelInfo


@runtime_checkable
class GPUEmbeddingClient(Protocol):
    """What turns texts into vectors on somebody else's GPU; :class:`~medkg.EmbeddingClient` does.

    A GPU that is absent or lost is a :class:`~medkg.GpuNotAvailableError`, at once and without a second attempt; faults
    of the network are :class:`~medkg.ServiceUnavailableError` and :class:`~medkg.ServiceTimeoutError`, after the
    client's retries.
    """

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = ...,
        tenant: str | None = ...,
        timeout: float | None = ...,
    ) -> EmbeddingResult:
        """Turn each text into a vector; None means the server's default model."""
        ...

    def models(self, *, tenant: str | None = ..., timeout: float | None = ...) -> list[ModelInfo]:
        """The models of the server; asking proves that it can be reached and that its GPU is there."""
        ...

    def endpoints(self) -> list[EndpointInfo]:
        """What is known of each server, its circuit breaker included; nothing is sent."""
        ...

    def close(self) -> None:
        """Let the connections go."""
        ...


if TYPE_CHECKING:
    _conforms: type[GPUEmbeddingClient] = EmbeddingClient


class Qwen3GRPCClient:
    """One embedding model behind gRPC, for callers that want plain lists."""

    __slots__ = ("embedding", "model")

    embedding: EmbeddingClient
    """What makes the calls, with all that it can do besides."""
    model: str | None
    """The model that is asked for; None means the server's default."""

    def __init__(
        self, config: ClientConfig | None = None, /, *, model: str | None = None, **fields: Unpack[ClientOptions]
    ) -> None:
        """As :class:`~medkg.EmbeddingClient`, for one model.

        Args:
            config: As for :class:`~medkg.EmbeddingClient`.
            model: The name that the server gave its checkpoint (``--embedding-model NAME=FOLDER``); None means the
                server's default model, whichever that is.
            **fields: Fields of :class:`~medkg.config.ClientConfig` that differ from ``config``.

        Raises:
            ConfigError: The configuration cannot be used; every problem is listed.
        """
        self.embedding = EmbeddingClient(config, **fields)
        self.model = model

    def embed_texts(self, texts: Sequence[str], **call: Unpack[CallOptions]) -> list[list[float]]:
        """Turn each text into a list of floats, in order; no texts give no lists, without a call.

        The lists take some eight times the memory of the array that :meth:`EmbeddingClient.embed` gives, and time to
        make: new code calls that.

        Raises:
            EmbeddingValidationError: A text cannot be embedded; it is named, e.g. ``texts[3]``.
            ModelNotFoundError: No model of that name is loaded.
            GpuNotAvailableError: The server has no usable GPU. Do not retry.
        """
        if len(texts) == 0:
            return []
        vectors: list[list[float]] = self.embedding.embed(texts, model=self.model, **call).vectors.tolist()
        return vectors

    def health_check(self, **call: Unpack[CallOptions]) -> bool:
        """True if the server can be reached, has its GPU, and answers with this model now; nothing is computed.

        Raises:
            ServiceUnavailableError: No server could be reached.
            GpuNotAvailableError: The server has no usable GPU.
        """

        def is_mine(model: ModelInfo) -> bool:
            return model.is_default and model.kind == "dense" if self.model is None else model.name == self.model

        return any(is_mine(model) and model.state == "ready" for model in self.embedding.models(**call))

    def close(self) -> None:
        """Let the connections go; further calls raise."""
        self.embedding.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[ClientConfig]]:
        """Travel as the configuration and the model's name."""
        return partial(type(self), model=self.model), (self.embedding.config,)

    def __repr__(self) -> str:
        """Show the configuration."""
        return f"{type(self).__name__}({self.embedding.config!r}, model={self.model!r})"
