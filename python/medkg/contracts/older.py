"""To and from the older shape of ``context.data``: plain dicts that each stage writes into.

==========================  ====================================================================================
``tenant_id``               for whom
``correlation_id``          names the run in logs
``chunks``                  ``[{"chunk_id": str, "body": str, ...}, ...]``, written by the chunking stage
``config["embedding"]``     ``{"model": str, ...}``: fields of :class:`EmbeddingOptions`; may be absent
``embeddings``              ``[{"id", "model", "kind": "dense", "dimension", "vectors": [[float]], "metadata"}]``
``metrics["embedding"]``    ``{"vectors": int, "duration_ms": float}``
``embedding_summary``       what the list cannot say: model and its digest, tokens, ids of the call and its trace
``embedding_result``        the typed :class:`EmbeddingResult`, where ``MEDKG_TYPED_STAGE`` is on
==========================  ====================================================================================

Lists of floats take some eight times the memory of the array and time to make: that is what the typed stage saves.
Nothing here changes what it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medkg.contracts.context import MissingResultError
from medkg.contracts.request import EmbeddingOptions, EmbeddingRequest
from medkg.contracts.result import EmbeddingResult
from medkg.errors import EmbeddingValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULT_KEY: Final = "embedding_result"
_KIND: Final = "dense"


def request_from_data(data: Mapping[str, Any]) -> EmbeddingRequest:
    """The request that the older stage would have made out of ``chunks``.

    Raises:
        MissingResultError: There are no chunks.
        EmbeddingValidationError: A chunk has no text or no id, or an option is none.
    """
    chunks = data.get("chunks")
    if not chunks:
        raise _missing("chunks", "run the chunking stage first", data)
    given: dict[str, Any] = {"correlation_id": data["correlation_id"]} if data.get("correlation_id") else {}
    config = (data.get("config") or {}).get("embedding") or {}
    return EmbeddingRequest(
        texts=tuple(_field(chunk, index, "body") for index, chunk in enumerate(chunks)),
        ids=tuple(_field(chunk, index, "chunk_id") for index, chunk in enumerate(chunks)),
        tenant=data.get("tenant_id"),
        options=EmbeddingOptions(**config),
        **given,
    )


def result_to_data(result: EmbeddingResult, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``data`` with the result in the older shape, as a new dict.

    Vectors become float32 lists, whatever the result's ``dtype``. A text without an id is called by its number.
    """
    before = {} if data is None else dict(data)
    ids = result.ids or tuple(str(number) for number in range(len(result)))
    return {
        **before,
        "embeddings": [
            {
                "id": name,
                "model": result.model,
                "kind": _KIND,
                "dimension": result.dimension,
                "vectors": [vector],
                "metadata": {},
            }
            for name, vector in zip(ids, result.as_float32().tolist(), strict=True)
        ],
        "metrics": {
            **before.get("metrics", {}),
            "embedding": {"vectors": len(result), "duration_ms": round(result.seconds * 1000, 3)},
        },
        "embedding_summary": {
            "vectors": len(result),
            "model": result.model,
            "model_digest": result.model_digest,
            "token_counts": None if result.token_counts is None else result.token_counts.tolist(),
            "truncated": list(result.truncated),
            "correlation_id": result.correlation_id,
            "trace_id": result.trace_id,
            "degraded": result.degraded,
        },
    }


def result_from_data(data: Mapping[str, Any]) -> EmbeddingResult:
    """The result that an older stage left in ``embeddings``; what the older shape does not say is empty or None.

    Raises:
        MissingResultError: There are no embeddings.
        EmbeddingValidationError: One is not a dense vector of the model and dimension of the first.
    """
    entries = data.get("embeddings")
    if not entries:
        raise _missing("embeddings", "run the embedding stage first", data)
    vectors = [_vector(entry, index) for index, entry in enumerate(entries)]
    model, dimension = _field(entries[0], 0, "model", of="embeddings"), len(vectors[0])
    for index, entry in enumerate(entries):
        if entry.get("kind", _KIND) != _KIND or entry.get("model") != model or len(vectors[index]) != dimension:
            raise _refused(f"embeddings[{index}]", f"is no dense vector of {model!r} with {dimension} elements")
    summary = data.get("embedding_summary") or {}
    counts = summary.get("token_counts")
    return EmbeddingResult(
        vectors=np.array(vectors, dtype=np.float32),
        ids=tuple(_field(entry, index, "id", of="embeddings") for index, entry in enumerate(entries)),
        dimension=dimension,
        model=model,
        model_digest=summary.get("model_digest", ""),
        correlation_id=summary.get("correlation_id") or data.get("correlation_id") or "",
        tenant=data.get("tenant_id"),
        token_counts=None if counts is None else np.array(counts, dtype=np.uint32),
        truncated=tuple(summary.get("truncated", ())),
        trace_id=summary.get("trace_id", ""),
        degraded=summary.get("degraded"),
        seconds=float(((data.get("metrics") or {}).get("embedding") or {}).get("duration_ms", 0.0)) / 1000,
    )


def embeddings_of(data: Mapping[str, Any]) -> EmbeddingResult:
    """The embedding stage's result, typed or in the older shape: for later stages, whatever the flags say.

    Raises:
        MissingResultError: There is neither.
        EmbeddingValidationError: As :func:`result_from_data`.
    """
    found = data.get(RESULT_KEY)
    return found if isinstance(found, EmbeddingResult) else result_from_data(data)


def _field(entry: Mapping[str, Any], index: int, name: str, of: str = "chunks") -> Any:
    if name not in entry:
        raise _refused(f"{of}[{index}].{name}", "is missing")
    return entry[name]


def _vector(entry: Mapping[str, Any], index: int) -> list[float]:
    vectors = entry.get("vectors")
    if not isinstance(vectors, list) or len(vectors) != 1 or not _are_numbers(vectors[0]):
        raise _refused(f"embeddings[{index}].vectors", "must hold one list of numbers")
    vector: list[float] = vectors[0]
    return vector


def _are_numbers(vector: Any) -> bool:
    return isinstance(vector, list) and bool(vector) and all(isinstance(value, (int, float)) for value in vector)


def _refused(where: str, what: str) -> EmbeddingValidationError:
    text = f"context.data refused: {where} {what}"
    return EmbeddingValidationError(text, code="INVALID_ARGUMENT", field_violations=[(where, what)], http_status=400)


def _missing(key: str, remedy: str, data: Mapping[str, Any]) -> MissingResultError:
    there = ", ".join(map(repr, data)) or "nothing"
    return MissingResultError(f"context.data has no {key!r} (there is: {there}); {remedy}")
