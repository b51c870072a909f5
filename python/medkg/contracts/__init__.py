"""Typed contracts of the embedding stage: what goes in, what comes out, what can fail, and the way from plain dicts.

Requests and results are Pydantic models, frozen and strict; vectors are numpy arrays over the memory of the client's
answer, neither copied nor looked at element by element. Needs pydantic: ``pip install 'medkg[contracts]'``; it comes
with ``medkg[dagster]`` too.

The errors are those of :mod:`medkg.errors`: :class:`EmbeddingValidationError` is the one that the client raises.
:class:`EmbeddingResult` is what a stage hands on; ``medkg.EmbeddingResult`` is what the client answers, and
``as_answer()`` gives it.
"""

from __future__ import annotations

from medkg.extras import packages_of

with packages_of("contracts", "pydantic", user="medkg.contracts needs"):
    import pydantic as _pydantic  # noqa: F401

from medkg.contracts.context import MissingResultError, PipelineContext
from medkg.contracts.flags import FeatureFlags
from medkg.contracts.model import Contract
from medkg.contracts.older import embeddings_of, request_from_data, result_from_data, result_to_data
from medkg.contracts.request import EmbeddingOptions, EmbeddingRequest
from medkg.contracts.result import EmbeddingResult
from medkg.contracts.rollout import EmbeddingRollout
from medkg.contracts.stage import EmbeddingStage
from medkg.errors import EmbeddingError, EmbeddingProcessingError, EmbeddingValidationError
from medkg.failure_class import FailureClass

__all__ = [
    "Contract",
    "EmbeddingError",
    "EmbeddingOptions",
    "EmbeddingProcessingError",
    "EmbeddingRequest",
    "EmbeddingResult",
    "EmbeddingRollout",
    "EmbeddingStage",
    "EmbeddingValidationError",
    "FailureClass",
    "FeatureFlags",
    "MissingResultError",
    "PipelineContext",
    "embeddings_of",
    "request_from_data",
    "result_from_data",
    "result_to_data",
]
