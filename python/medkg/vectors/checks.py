"""What gpu-server checks of a call, for homes without one: the same limits, fields and classes of errors.

The limits stand in gpu-server's `service/vector.rs` and `service/validate.rs`; the contract test compares.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medkg.errors import (
    AlreadyExistsError,
    CollectionNotFoundError,
    ConfigError,
    ServiceError,
    VectorValidationError,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from medkg.results import CollectionInfo

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MAX_DIMENSION: Final = 8_192
MAX_QUERIES: Final = 1_024
MAX_K: Final = 10_000
MAX_FOUND: Final = 200_000
MAX_ID_BYTES: Final = 512
MAX_PAYLOAD_BYTES: Final = 64 * 1024
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
METRICS: Final = ("cosine", "dot", "l2")
LARGEST: Final = 1e15
"""Largest magnitude of an element: its square, summed over the largest dimension, still fits into an f32."""
SMALLEST: Final = 1e-12
"""A vector whose elements are all smaller counts as zero."""


def invalid(field: str, problem: str) -> VectorValidationError:
    """An argument is wrong."""
    return VectorValidationError(
        f"{field} {problem}",
        code="INVALID_ARGUMENT",
        reason="INVALID_FIELD",
        service="VectorStore",
        field_violations=[(field, problem)],
        http_status=400,
    )


def not_found(name: str, tenant: str) -> CollectionNotFoundError:
    """The tenant has no collection of that name."""
    return CollectionNotFoundError(
        f"tenant {tenant!r} has no collection {name!r}; create it first",
        code="NOT_FOUND",
        reason="COLLECTION_NOT_FOUND",
        service="VectorStore",
        tenant=tenant,
        http_status=404,
    )


def already_there(info: CollectionInfo, tenant: str) -> AlreadyExistsError:
    """The name is taken."""
    problem = f"{info.name!r} is there already with dimension {info.dimension} and metric {info.metric!r}"
    return AlreadyExistsError(
        f"collection {problem}; take another name, or exist_ok=True if these are wanted",
        code="ALREADY_EXISTS",
        reason="COLLECTION_EXISTS",
        service="VectorStore",
        tenant=tenant,
        field_violations=[("collection.name", problem)],
        http_status=409,
    )


def no_sparse_vectors(field: str, home: str, tenant: str) -> ServiceError:
    """The home keeps dense vectors only."""
    problem = f"is given, but {home} keeps no sparse vectors; use GpuServerStore, or open_store(home='gpu-server')"
    return ServiceError(
        f"{field} {problem}",
        code="UNIMPLEMENTED",
        service="VectorStore",
        tenant=tenant,
        field_violations=[(field, problem)],
        http_status=501,
    )


def tenant(text: Any) -> str:
    """A tenant's name, which becomes part of a path."""
    if not (isinstance(text, str) and TENANT.fullmatch(text)):
        problem = "must be 1 to 63 of the characters A-Z a-z 0-9 . _ -, the first one a letter or a digit"
        raise ConfigError(f"tenant {problem}", field_violations=[("tenant", problem)])
    return str(text)


def collection(name: Any, dimension: int, metric: str) -> None:
    """The properties of a new collection."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        problem = "must be 1 to 127 of the characters A-Z a-z 0-9 . _ -, the first one a letter or a digit"
        raise invalid("collection.name", problem)
    if not 1 <= dimension <= MAX_DIMENSION:
        raise invalid("collection.dimension", f"is {dimension}; it must be 1 to {MAX_DIMENSION}")
    if metric not in METRICS:
        raise invalid("metric", f'is {metric!r}; give "cosine", "dot" or "l2"')


def texts(ids: Sequence[str]) -> list[str]:
    """At least one id, of whatever form."""
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise invalid("ids", f"is a {type(ids).__name__}; give a sequence of str")
    for index, one in enumerate(ids):
        if not isinstance(one, str):
            raise invalid(f"ids[{index}]", f"is a {type(one).__name__}; give a str")
        try:
            one.encode()
        except UnicodeEncodeError:
            raise invalid(f"ids[{index}]", "has a lone surrogate, which is no text") from None
    if not ids:
        raise invalid("ids", "is empty; send at least one")
    return list(ids)


def new_ids(ids: Sequence[str]) -> list[str]:
    """Ids of points to write: no duplicates, printable, not too long."""
    checked = texts(ids)
    seen: set[str] = set()
    for index, one in enumerate(checked):
        size = len(one.encode())
        if not 1 <= size <= MAX_ID_BYTES:
            raise invalid(f"ids[{index}]", f"has {size} bytes; an id has 1 to {MAX_ID_BYTES}")
        if CONTROL.search(one):
            raise invalid(f"ids[{index}]", "has a control character; an id is printable text")
        if one in seen:
            raise invalid(f"ids[{index}]", "is in this call twice; send each id once")
        seen.add(one)
    return checked


def matrix(field: str, array: Any, info: CollectionInfo, *, one: bool) -> npt.NDArray[np.float32]:
    """Vectors that fit the collection, shape ``(n, dimension)``; ``one`` accepts ``(dimension,)`` too."""
    if not isinstance(array, np.ndarray):
        raise invalid(field, f"is a {type(array).__name__}, not a numpy array; give float32 of shape (n, dimension)")
    if array.dtype != np.float32:
        raise invalid(field, f"has dtype {array.dtype}; give float32, e.g. with .astype(numpy.float32)")
    if one and array.ndim == 1:
        array = array[np.newaxis, :]
    if array.ndim != 2:  # noqa: PLR2004 - rows and columns
        raise invalid(field, f"has shape {list(array.shape)}; give (n, dimension)")
    if not array.flags.c_contiguous:
        raise invalid(field, "is not C-contiguous; give numpy.ascontiguousarray(...)")
    if array.shape[1] != info.dimension:
        problem = f"says dimension {array.shape[1]}; the collection has dimension {info.dimension}"
        raise invalid(f"{field}.shape", problem)
    _values(field, array, no_zero=info.metric == "cosine")
    fits: npt.NDArray[np.float32] = array
    return fits


def _values(field: str, array: npt.NDArray[np.float32], *, no_zero: bool) -> None:
    """Refuse the first row with a value that cannot be computed with."""
    largest = np.abs(array).max(axis=1, initial=0.0)
    wrong = ~(largest <= LARGEST)
    if no_zero:
        wrong |= largest < SMALLEST
    for row in np.flatnonzero(wrong):
        bad = np.flatnonzero(~np.isfinite(array[row]))
        if bad.size:
            problem = f"has {array[row, bad[0]]} at element {bad[0]}; every value must be finite"
        elif largest[row] > LARGEST:
            problem = f"has a value of magnitude {largest[row]:e}; scores overflow above {LARGEST:e}: scale it down"
        else:
            problem = "is a zero vector, which has no direction to compare by cosine"
        raise invalid(f"{field}[{row}]", problem)


def payload_texts(payloads: Sequence[Mapping[str, Any] | None] | None, count: int) -> list[str]:
    """Payloads as JSON text, "" for none."""
    if payloads is None:
        return [""] * count
    if len(payloads) != count:
        raise invalid("payloads", f"has {len(payloads)} entries for {count} ids; send one per id, or none")
    written = []
    for index, payload in enumerate(payloads):
        if payload is None:
            written.append("")
            continue
        field = f"payloads[{index}]"
        if not isinstance(payload, Mapping):
            raise invalid(field, f"is a {type(payload).__name__}; give a mapping or None")
        try:
            text = json.dumps(dict(payload), ensure_ascii=False, allow_nan=False)
            size = len(text.encode())
        except (TypeError, ValueError, RecursionError):
            raise invalid(field, "cannot be written as JSON; give str, numbers, bool, None, lists and dicts") from None
        if size > MAX_PAYLOAD_BYTES:
            raise invalid(field, f"has {size} bytes; at most {MAX_PAYLOAD_BYTES} are taken")
        written.append(text)
    return written


def search(queries: int, k: int, score_threshold: float | None, metric: str) -> None:
    """The numbers of a search."""
    if not 1 <= k <= MAX_K:
        raise invalid("k", f"is {k}; it must be 1 to {MAX_K}")
    if not 1 <= queries <= MAX_QUERIES:
        raise invalid("queries", f"has {queries} rows; send 1 to {MAX_QUERIES} at once")
    if queries * k > MAX_FOUND:
        raise invalid("k", f"times {queries} queries is more than {MAX_FOUND} points; ask for fewer at once")
    if score_threshold is None:
        return
    if not math.isfinite(score_threshold):
        raise invalid("score_threshold", f"is {score_threshold}; it must be finite")
    if metric == "l2" and score_threshold > 0:
        problem = f"is {score_threshold}, but scores are minus the distance under l2; give minus the largest distance"
        raise invalid("score_threshold", problem)
