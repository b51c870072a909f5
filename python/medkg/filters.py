"""Filters: which points of a collection are meant, by their payloads.

Filters are frozen values, joined with ``&``, ``|`` and ``~``::

    from medkg.filters import Equals, In, Range

    recent = Range("study.year", gte=2020) & ~In("type", ["letter", "editorial"])
    hits = services.vector.search("literature", query, filter=recent | Equals("pinned", True))

They are decided on the server, before anything is compared, so a search gives k points that match if there are k.

A field is a dotted path, ``"study.year"`` for 2020 in ``{"study": {"year": 2020}}``, or its keys as a sequence where
one of them has a dot: ``["study", "v1.0"]``. A field that is in no payload of the collection is an error.

Where a payload lacks the field, or has a value of another type there, the condition is false (and ``~`` of it true).
Where it has a list, the condition is true if it is for one of the elements. Numbers are compared by value: 2 equals
2.0, and True equals no number.

At most 32 levels, 256 conditions and 16 fields; the server checks, and names what is wrong by its path, such as
``filter.and[1].not.equals.value``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias

__all__ = ["And", "Equals", "Exists", "Filter", "In", "Not", "Or", "Range"]

Field: TypeAlias = str | Sequence[str]
"""A dotted path, or the keys of a path."""

Value: TypeAlias = str | int | float | bool
"""What a payload can hold and a filter can compare."""


class Filter:
    """What all filters have in common: they can be joined."""

    __slots__ = ()

    def __and__(self, other: Filter) -> And:
        """Both."""
        return And(self, other)

    def __or__(self, other: Filter) -> Or:
        """At least one of the two."""
        return Or(self, other)

    def __invert__(self) -> Not:
        """Not this one."""
        return Not(self)


@dataclass(frozen=True, slots=True)
class Equals(Filter):
    """The field equals a value.

    Attributes:
        field: A dotted path, or its keys.
        value: A str of at most 1,024 bytes, an int of 64 bits, a finite float, or a bool.
    """

    field: Field
    value: Value


@dataclass(frozen=True, slots=True)
class In(Filter):
    """The field equals one of several values.

    Attributes:
        field: A dotted path, or its keys.
        values: 1 to 4,096 of them.
    """

    field: Field
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Range(Filter):
    """The field lies between bounds: numbers, or texts, which are compared character by character.

    Texts suit dates (``"2020-05-01"``), and RFC 3339 times that are all in UTC and equally precise.

    Attributes:
        field: A dotted path, or its keys.
        gt: More than this.
        gte: At least this; not together with ``gt``.
        lt: Less than this.
        lte: At most this; not together with ``lt``.
    """

    field: Field
    _: KW_ONLY
    gt: str | float | None = None
    gte: str | float | None = None
    lt: str | float | None = None
    lte: str | float | None = None


@dataclass(frozen=True, slots=True)
class Exists(Filter):
    """The field is there and is not null.

    Attributes:
        field: A dotted path, or its keys.
    """

    field: Field


@dataclass(frozen=True, slots=True, init=False)
class And(Filter):
    """All of some filters.

    Attributes:
        filters: At least one.
    """

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        """Join them."""
        object.__setattr__(self, "filters", filters)


@dataclass(frozen=True, slots=True, init=False)
class Or(Filter):
    """At least one of some filters.

    Attributes:
        filters: At least one.
    """

    filters: tuple[Filter, ...]

    def __init__(self, *filters: Filter) -> None:
        """Join them."""
        object.__setattr__(self, "filters", filters)


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """Not the filter.

    Attributes:
        filter: What must not be true.
    """

    filter: Filter
