"""What can go wrong in a call, as exceptions.

Which failure becomes which class is decided by the one table of errors in the Rust client; nothing here decides
anything. Every exception carries the same attributes, can be pickled (Dagster and ``multiprocessing`` do so), and names
what happened, where, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AlreadyExistsError",
    "AuthenticationError",
    "CircuitOpenError",
    "CollectionNotFoundError",
    "ConfigError",
    "EmbeddingError",
    "EmbeddingProcessingError",
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
        failure_class: Why it failed, for machines. It belongs to the class of the exception.
    """

    failure_class: FailureClass = FailureClass.SERVICE

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

    def details(self) -> dict[str, Any]:
        """What is known of the failed call: the attributes that are arguments too, by name."""
        return {name: getattr(self, name) for name in MedkgError.__init__.__kwdefaults__ or {}}


class ConfigError(MedkgError, ValueError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """The configuration cannot be used; ``field_violations`` lists every problem."""

    failure_class = FailureClass.CONFIGURATION


class ServiceError(MedkgError):
    """A call failed for a reason that is neither the arguments nor the GPU."""


class ServiceUnavailableError(ServiceError, ConnectionError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """No server could be reached, or the one reached cannot serve now, and the client's retries are spent."""

    failure_class = FailureClass.NETWORK


class CircuitOpenError(ServiceUnavailableError):
    """Every server failed repeatedly, so nothing was sent; ``retry_after`` is the rest of the cool-down."""


class ServiceTimeoutError(ServiceError, TimeoutError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """The deadline passed."""

    failure_class = FailureClass.NETWORK


class RateLimitedError(ServiceError):
    """A queue is full or a rate is exceeded, and waiting as told did not fit into the deadline."""

    failure_class = FailureClass.NETWORK


class StorageFullError(ServiceError):
    """A disk of the server is full, or at its quota; nothing of the request was written.

    Never retried by the client: somebody has to make room first.
    """


class AuthenticationError(ServiceError):
    """The server does not know who asks."""

    failure_class = FailureClass.ACCESS


class PermissionDeniedError(ServiceError):
    """The server knows who asks and refuses."""

    failure_class = FailureClass.ACCESS


class FailedPreconditionError(ServiceError):
    """The server is in a state in which it refuses the call, and it is no GPU fault (e.g. a model failed to load)."""


class NotFoundError(ServiceError):
    """What was named is not there."""

    failure_class = FailureClass.INPUT


class ModelNotFoundError(NotFoundError):
    """No model of that name is loaded."""


class CollectionNotFoundError(NotFoundError):
    """The tenant has no collection of that name."""


class AlreadyExistsError(ServiceError):
    """It is there already."""

    failure_class = FailureClass.INPUT


class ValidationError(MedkgError, ValueError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """An argument is wrong and stays wrong; ``field_violations`` names it, with its index."""

    failure_class = FailureClass.INPUT


class EmbeddingError(MedkgError):
    """Texts did not become vectors. A GPU failure is none of these: ``except EmbeddingError`` must not hide it."""

    @property
    def correlation_id(self) -> str:
        """The request's ``correlation_id``, which is the call's ``request_id`` in every log."""
        return self.request_id


class EmbeddingValidationError(ValidationError, EmbeddingError):
    """An argument of an embedding call is wrong."""


class EmbeddingProcessingError(EmbeddingError):
    """The request was right and the call failed; :class:`medkg.contracts.EmbeddingStage` raises it.

    It carries all that the failed call's own exception (its ``__cause__``) does, so ``retryable``, ``retry_after`` and
    ``breaker_state`` too.

    Attributes:
        failure_class: That of the failed call.
        error_class: Name of the failed call's exception, e.g. ``"CircuitOpenError"``: a row of the one table of errors.
    """

    def __init__(
        self,
        text: str = "",
        *,
        failure_class: FailureClass = FailureClass.SERVICE,
        error_class: str = "",
        **details: Any,
    ) -> None:
        """Make an exception that prints as ``text``; ``details`` as for :class:`MedkgError`."""
        super().__init__(text, **details)
        self.failure_class = failure_class
        self.error_class = error_class


class RerankingValidationError(ValidationError):
    """An argument of a reranking call is wrong."""


class VectorValidationError(ValidationError):
    """An argument of a vector call is wrong."""


class GpuNotAvailableError(MedkgError):
    """The server has no usable GPU. Never retried: the run that needs it should fail."""

    failure_class = FailureClass.GPU


class GpuLostError(GpuNotAvailableError):
    """The server's GPU stopped working."""


class GpuOutOfMemoryError(GpuNotAvailableError):
    """The server's GPU has too little memory for this call."""
