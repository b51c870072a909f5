"""`medkg.filters` decided in Python, as gpu-server decides them.

Neither LanceDB nor Milvus can be asked the same question: payloads have no schema, and absent fields, lists, objects,
2 against 2.0, true against 1 and fields that no payload has mean something of their own in each. So filters are
decided on the payload itself. The limits stand in gpu-server's `service/vector/filter.rs`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from medkg.filters import And, Equals, Exists, Filter, In, Not, Or, Range
from medkg.vectors.checks import invalid

if TYPE_CHECKING:
    from collections.abc import Callable

Field: TypeAlias = tuple[str, ...]
Scalar: TypeAlias = "tuple[int, Any]"
"""Kind (0 boolean, 1 number, 2 text) and value: only values of one kind are compared."""
Test: TypeAlias = "Callable[[Any], bool]"

MAX_DEPTH: Final = 32
MAX_CONDITIONS: Final = 256
MAX_FIELDS: Final = 16
MAX_KEYS: Final = 8
MAX_KEY_BYTES: Final = 256
MAX_VALUES: Final = 4_096
MAX_TEXT_BYTES: Final = 1_024
BITS: Final = 63
_ABSENT: Final = object()
_HOLDS: Final = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


class Matcher:
    """A filter that was checked; it is asked for each payload of a collection, and then whether it made sense."""

    def __init__(self, wanted: Filter) -> None:
        """Check a filter.

        Raises:
            VectorValidationError: It is wrong; the path is named, such as ``filter.and[1].not.equals.value``.
        """
        self._conditions = 0
        self._fields: dict[Field, str] = {}
        self._test = self._read("filter", wanted, 1)
        if len(self._fields) > MAX_FIELDS:
            raise invalid("filter", f"is over {len(self._fields)} fields; at most {MAX_FIELDS} are taken")
        self._unseen = dict(self._fields)
        self._asked = 0

    def matches(self, payload: Any) -> bool:
        """Whether a payload, None if there is none, is meant."""
        self._asked += 1
        for field in [field for field in self._unseen if _value(payload, field) is not _ABSENT]:
            del self._unseen[field]
        return self._test(payload)

    def finish(self) -> None:
        """Refuse the filter if it names a field that no payload had; an empty collection refuses nothing."""
        if self._asked and self._unseen:
            field, path = next(iter(self._unseen.items()))
            raise invalid(path, f"is an unknown filter field: no payload of the collection has {list(field)!r}")

    def _read(self, path: str, wanted: Any, depth: int) -> Test:
        if depth > MAX_DEPTH:
            raise invalid(path, f"is nested too deep; at most {MAX_DEPTH} levels are taken")
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise invalid(path, f"is one condition too many; a filter has at most {MAX_CONDITIONS}")
        if isinstance(wanted, Not):
            part = self._read(f"{path}.not", wanted.filter, depth + 1)
            return lambda payload: not part(payload)
        if isinstance(wanted, (And, Or)):
            path = f"{path}.{'and' if isinstance(wanted, And) else 'or'}"
            if not wanted.filters:
                raise invalid(path, "is empty; give at least one filter")
            parts = [self._read(f"{path}[{i}]", part, depth + 1) for i, part in enumerate(wanted.filters)]
            decide = all if isinstance(wanted, And) else any
            return lambda payload: decide(part(payload) for part in parts)
        if isinstance(wanted, Exists):
            field = self._field(f"{path}.exists", wanted.field)
            return lambda payload: _value(payload, field) not in (_ABSENT, None)
        if isinstance(wanted, Equals):
            one = _scalar(f"{path}.equals.value", wanted.value)
            return self._compare(f"{path}.equals", wanted.field, lambda found: found == one)
        if isinstance(wanted, In):
            several = _several(f"{path}.in.values", wanted.values)
            return self._compare(f"{path}.in", wanted.field, several.__contains__)
        if isinstance(wanted, Range):
            return self._compare(f"{path}.range", wanted.field, _between(f"{path}.range", wanted))
        raise invalid(path, f"is a {type(wanted).__name__}; give a filter of medkg.filters")

    def _compare(self, path: str, field: Any, takes: Callable[[Scalar], bool]) -> Test:
        keys = self._field(path, field)

        def test(payload: Any) -> bool:
            value = _value(payload, keys)
            elements = value if isinstance(value, list) else (value,)
            return any(takes(found) for element in elements if (found := _found(element)) is not None)

        return test

    def _field(self, path: str, field: Any) -> Field:
        path = f"{path}.field"
        if isinstance(field, str):
            keys = tuple(field.split("."))
        elif isinstance(field, Sequence) and all(isinstance(key, str) for key in field):
            keys = tuple(field)
        else:
            raise invalid(path, f"is a {type(field).__name__}; give a dotted path, or its keys")
        if not 1 <= len(keys) <= MAX_KEYS:
            raise invalid(path, f"has {len(keys)} keys; a field has 1 to {MAX_KEYS}")
        for key in keys:
            if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
                raise invalid(path, f"has a key that is too long; at most {MAX_KEY_BYTES} bytes are taken")
        self._fields.setdefault(keys, path)
        return keys


def _value(payload: Any, field: Field) -> Any:
    """What a payload has in a field."""
    for key in field:
        if not isinstance(payload, dict) or key not in payload:
            return _ABSENT
        payload = payload[key]
    return payload


def _found(value: Any) -> Scalar | None:
    """A value of a payload, if it can be compared."""
    if isinstance(value, bool):
        return 0, value
    if isinstance(value, int):
        # As the server reads JSON: whole numbers beyond 64 bits are floats.
        return 1, value if -(1 << BITS) <= value < 1 << BITS else float(value)
    if isinstance(value, float):
        return 1, value
    return (2, value) if isinstance(value, str) else None


def _scalar(path: str, value: Any) -> Scalar:
    """A value of a filter."""
    if isinstance(value, int) and not -(1 << BITS) <= value < 1 << BITS:
        raise invalid(path, "is beyond 64 bits; give a smaller number, or a float")
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(path, f"is {value}; a number must be finite")
    if isinstance(value, str) and len(value.encode(errors="replace")) > MAX_TEXT_BYTES:
        raise invalid(path, f"is too long; at most {MAX_TEXT_BYTES} bytes are taken")
    found = _found(value)
    if found is None:
        raise invalid(path, f"is a {type(value).__name__}; give a str, an int, a float or a bool")
    return found


def _several(path: str, values: Any) -> frozenset[Scalar]:
    wanted = frozenset(_scalar(f"{path}[{index}]", value) for index, value in enumerate(values))
    if not 1 <= len(values) <= MAX_VALUES:
        raise invalid(path, f"has {len(values)} entries; give 1 to {MAX_VALUES}")
    return wanted


def _between(path: str, wanted: Range) -> Callable[[Scalar], bool]:
    given = {name: getattr(wanted, name) for name in ("gt", "gte", "lt", "lte") if getattr(wanted, name) is not None}
    bounds = {name: _scalar(f"{path}.{name}", value) for name, value in given.items()}
    for name, (kind, _) in bounds.items():
        if kind == 0:
            raise invalid(f"{path}.{name}", "is a boolean; a bound is a number or a text")
    for pair in (("gt", "gte"), ("lt", "lte")):
        if bounds.keys() >= set(pair):
            raise invalid(path, f"has both {pair[0]} and {pair[1]}; give one")
    if not bounds:
        raise invalid(path, "has no bound; give gt, gte, lt or lte")
    if len({kind for kind, _ in bounds.values()}) > 1:
        raise invalid(path, "has a number and a text as bounds; give two of one kind")

    def takes(found: Scalar) -> bool:
        kind, value = found
        return all(kind == of and _HOLDS[name](value, bound) for name, (of, bound) in bounds.items())

    return takes
