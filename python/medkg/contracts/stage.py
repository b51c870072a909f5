"""The embedding stage: a request in, a result out, nothing else changed."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from medkg.contracts.result import EmbeddingResult
from medkg.errors import EmbeddingProcessingError, EmbeddingValidationError, GpuNotAvailableError, MedkgError
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from typing import Any

    from medkg.client import EmbeddingClient
    from medkg.contracts.request import EmbeddingRequest

_log = logging.getLogger("medkg.contracts")
_LOGGED = ("code", "reason", "endpoint", "trace_id", "attempts", "retryable", "retry_after", "breaker_state")


class EmbeddingStage:
    """Turns requests into results with a client that it does not own: who made the client closes it."""

    __slots__ = ("client", "name")

    def __init__(self, client: EmbeddingClient, *, name: str = "embedding") -> None:
        """Take a client.

        Args:
            client: Makes the calls; in a Dagster step ``run.embedding``.
            name: Of the stage, in logs and in a :class:`medkg.contracts.PipelineContext`.
        """
        self.client = client
        self.name = name

    def run(self, request: EmbeddingRequest) -> EmbeddingResult:
        """Embed the texts of a request. A failure is logged in ``medkg.contracts``, without any text.

        Raises:
            EmbeddingValidationError: An argument is wrong; it is named, e.g. ``texts[3]``.
            EmbeddingProcessingError: The call failed; its cause is the client's exception, whose class it names.
            GpuNotAvailableError: The server has no usable GPU. It comes as the client raises it, for it ends the run.
        """
        how = request.options
        started = time.perf_counter()
        try:
            answer = self.client.embed(
                request.texts,
                model=how.model,
                dtype=how.dtype,
                prompt_name=how.prompt_name,
                instruction=how.instruction,
                dimensions=how.dimensions,
                truncation=how.truncation,
                tenant=request.tenant,
                timeout=how.timeout,
                request_id=request.correlation_id,
            )
        except MedkgError as error:
            self._tell(request, error)
            if isinstance(error, (GpuNotAvailableError, EmbeddingValidationError)):
                raise
            raise _translated(error) from error
        return EmbeddingResult.of(request, answer, seconds=time.perf_counter() - started)

    def _tell(self, request: EmbeddingRequest, error: MedkgError) -> None:
        """Log a failure with its parts as attributes of the record."""
        level = logging.WARNING if error.failure_class is FailureClass.NETWORK else logging.ERROR
        parts: dict[str, Any] = {
            "stage": self.name,
            "correlation_id": request.correlation_id,
            "tenant": error.tenant or request.tenant,
            "texts": len(request.texts),
            "failure_class": error.failure_class.value,
            "error_class": type(error).__name__,
            **{name: getattr(error, name) for name in _LOGGED},
        }
        _log.log(level, "stage %s failed: %s", self.name, error, extra=parts)


def _translated(error: MedkgError) -> EmbeddingProcessingError:
    return EmbeddingProcessingError(
        str(error),
        failure_class=error.failure_class,
        error_class=type(error).__name__,
        **error.details(),
    )
