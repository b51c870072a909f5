"""What the stages of a pipeline hand to each other: each result under its stage's name, typed, and never changed."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from medkg.contracts.model import Contract
from medkg.contracts.request import Identifier, Name  # noqa: TC001 - Pydantic reads the annotations
from medkg.errors import MedkgError
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class MissingResultError(MedkgError, LookupError):  # pyright: ignore[reportUnsafeMultipleInheritance]
    """A stage asked for the result of another that has none, or one of another type."""

    failure_class = FailureClass.INPUT


def _locked(results: dict[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(results))


class PipelineContext(Contract):
    """A run of a pipeline, as far as it has come. :meth:`with_result` makes the next one.

    Attributes:
        tenant: For whom.
        correlation_id: Names the run in logs.
        results: Stage to its result, in the order of the stages; read-only.
    """

    tenant: Name
    correlation_id: Identifier
    results: Annotated[dict[str, Any], AfterValidator(_locked)] = Field(default_factory=dict, validate_default=True)

    def with_result(self, stage: str, result: object) -> PipelineContext:
        """The context with one more result; this one stays as it is.

        Raises:
            ValueError: The stage has a result already.
        """
        if stage in self.results:
            message = f"stage {stage!r} has a result already; stages that run twice need two names"
            raise ValueError(message)
        return PipelineContext(
            tenant=self.tenant, correlation_id=self.correlation_id, results={**self.results, stage: result}
        )

    def result(self, stage: str, kind: type[T]) -> T:
        """The result of a stage.

        Raises:
            MissingResultError: The stage has none, or one of another type.
        """
        if stage not in self.results:
            there = ", ".join(map(repr, self.results)) or "none yet"
            message = f"stage {stage!r} has no result (stages with one: {there}); run it before the stage that asks"
            raise MissingResultError(message, request_id=self.correlation_id, tenant=self.tenant)
        found = self.results[stage]
        if not isinstance(found, kind):
            message = f"stage {stage!r} gave {type(found).__qualname__}, and {kind.__qualname__} is asked for"
            raise MissingResultError(message, request_id=self.correlation_id, tenant=self.tenant)
        return found
