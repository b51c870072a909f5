"""What a file of points says of its collection, whichever format it has, and how a wrong one is refused.

Format 1 has no sparse vectors, format 2 has them. A file is written in the lower one that holds it, so that a version
of medkg which knows format 1 only refuses what it would read by halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from medkg.errors import ConfigError
from medkg.results import CollectionInfo

if TYPE_CHECKING:
    from medkg.vectors.interface import Metric

__all__ = ["info", "metadata", "wrong"]

_DENSE, _SPARSE = "1", "2"


def metadata(collection: CollectionInfo) -> dict[str, str]:
    """What stands in the file."""
    told = {
        "medkg.format": _SPARSE if collection.sparse_dimension else _DENSE,
        "medkg.name": collection.name,
        "medkg.dimension": str(collection.dimension),
        "medkg.metric": collection.metric,
        "medkg.storage": collection.storage,
    }
    if collection.sparse_dimension:
        told["medkg.sparse_dimension"] = str(collection.sparse_dimension)
    return told


def info(told: dict[str, str]) -> CollectionInfo:
    """The collection that such a file was written from.

    Raises:
        ConfigError: The file is not one of these.
    """
    kind = told.get("medkg.format")
    if kind not in {_DENSE, _SPARSE}:
        raise wrong("path", "is no file that export_collection of this version wrote")
    metric = told["medkg.metric"]
    if metric not in {"cosine", "dot", "l2"}:
        raise wrong("path", f"has the metric {metric!r}")
    storage: Any = told["medkg.storage"]
    return CollectionInfo(
        told["medkg.name"],
        int(told["medkg.dimension"]),
        cast("Metric", metric),
        storage,
        created=False,
        sparse_dimension=int(told["medkg.sparse_dimension"]) if kind == _SPARSE else 0,
    )


def wrong(field: str, problem: str) -> ConfigError:
    """An argument is wrong, or the file that it names."""
    return ConfigError(f"{field} {problem}", field_violations=[(field, problem)])
