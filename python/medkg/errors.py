"""What can go wrong in a call, as exceptions.

Which failure becomes which class is decided by the one table of errors in the Rust client; nothing here decides
anything. Every exception carries the same attributes, can be pickled (Dagster and ``multiprocessing`` do so), and names
what happened, where, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AlreadyExistsError",
    "AuthenticationError",
    "CircuitOpenError",
    "CollectionNotFoundError",
    "ConfigError",
    "EmbeddingValidationError",
    "FailedPreconditionError",
    "GpuLostError",
    "GpuNotAvailableError",
    "GpuOutOfMemoryError",
    "MedkgError",
    "ModelNotFoundError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitedError",
    "RerankingValidationError",
    "ServiceError",
    "ServiceTimeoutError",
    "ServiceUnavailableError",
    "StorageFullError",
    "ValidationError",
    "VectorValidationError",
]


class MedkgError(Exception):
    """Base of every exception of medkg.

    Attributes:
        code: gRPC status code, e.g. ``"UNAVAILABLE"``; empty where no call was made.
        reason: ``ErrorInfo.reason`` of the server, e.g. ``"QUEUE_FULL"``; empty where there is none.
        message: What happened, without the context that ``str()`` adds.
        service: The service, e.g. ``"EmbeddingService"``.
        method: The method, e.g. ``"GenerateEmbeddings"``.
        endpoint: Address of the last attempt; empty if nothing was sent.
        request_id: ``x-request-id`` of the call.
        trace_id: Trace id of the call, 32 hex digits.
        tenant: For whom the call was made.
        attempts: Attempts made; 0 if nothing was sent.
        retryable: True if the same call may succeed later and the client has not already spent its retries on it.
        retry_after: Seconds to wait before the same call makes sense, where that is known.
        field_violations: ``(field, description)`` of each argument that is wrong, e.g. ``("texts[3]", "is empty")``.
        breaker_state: ``"closed"``, ``"open"`` or ``"half_open"``: the endpoint's breaker after the failure.
        http_status: The HTTP status that a gateway answers with, from the same table; 500 where no call was made.
    """

    def __init__(
        self,
        text: str = "",
        *,
        code: str = "",
        reason: str = "",
        message: str = "",
        service: str = "",
        method: str = "",
        endpoint: str = "",
        request_id: str = "",
        trace_id: str = "",
        tenant: str = "",
        attempts: int = 0,
        retryable: bool = False,
        retry_after: float | None = None,
        field_violations: Iterable[tuple[str, str]] = (),
        breaker_state: str | None = None,
        http_status: int = 500,
    ) -> None:
        """Make an exception that prints as ``text``."""
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.message = message or text
        self.service = service
        self.method = method
        self.endpoint = endpoint
        self.request_id = request_id
        self.trace_id = trace_id
        self.tenant = tenant
        self.attempts = attempts
        self.retryable = retryable
        self.retry_after = retry_after
        self.field_violations = list(field_violations)
        self.breaker_state = breaker_state
        self.http_status = http_status


class ConfigError(MedkgError, ValueError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """The configuration cannot be used; ``field_violations`` lists every problem."""


class ServiceError(MedkgError):
    """A call failed for a reason that is neither the arguments nor the GPU."""


class ServiceUnavailableError(ServiceError, ConnectionError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """No server could be reached, or the one reached cannot serve now, and the client's retries are spent."""


class CircuitOpenError(ServiceUnavailableError):
    """Every server failed repeatedly, so nothing was sent; ``retry_after`` is the rest of the cool-down."""


class ServiceTimeoutError(ServiceError, TimeoutError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """The deadline passed."""


class RateLimitedError(ServiceError):
    """A queue is full or a rate is exceeded, and waiting as told did not fit into the deadline."""


class StorageFullError(ServiceError):
    """A disk of the server is full, or at its quota; nothing of the request was written.

    Never retried by the client: somebody has to make room first.
    """


class AuthenticationError(ServiceError):
    """The server does not know who asks."""


class PermissionDeniedError(ServiceError):
    """The server knows who asks and refuses."""


class FailedPreconditionError(ServiceError):
    """The server is in a state in which it refuses the call, and it is no GPU fault (e.g. a model failed to load)."""


class NotFoundError(ServiceError):
    """What was named is not there."""


class ModelNotFoundError(NotFoundError):
    """No model of that name is loaded."""


class CollectionNotFoundError(NotFoundError):
    """The tenant has no collection of that name."""


class AlreadyExistsError(ServiceError):
    """It is there already."""


class ValidationError(MedkgError, ValueError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """An argument is wrong and stays wrong; ``field_violations`` names it, with its index."""


class EmbeddingValidationError(ValidationError):
    """An argument of an embedding call is wrong."""


class RerankingValidationError(ValidationError):
    """An argument of a reranking call is wrong."""


class VectorValidationError(ValidationError):
    """An argument of a vector call is wrong."""


class GpuNotAvailableError(MedkgError):
    """The server has no usable GPU. Never retried: the run that needs it should fail."""


class GpuLostError(GpuNotAvailableError):
    """The server's GPU stopped working."""


class GpuOutOfMemoryError(GpuNotAvailableError):
    """The server's GPU has too little memory for this call."""
