"""One small interface to collections of vectors, with three homes: gpu-server, LanceDB and Milvus.

What it is: `VectorStore` makes collections, writes points and finds the nearest ones. `GpuServerStore` keeps them in
a gpu-server, `LanceStore` in a folder or in object storage (`pip install 'medkg[lance]'`), `MilvusStore` in Milvus,
from a local file to a cluster (`pip install 'medkg[milvus]'`). `open_store` chooses::

    from medkg.vectors import open_store

    with open_store(uri="build/lance", tenant="demo") as store:
        store.create("literature", 384, exist_ok=True)
        store.upsert("literature", ids, vectors, payloads)
        (hits,) = store.search("literature", query, k=5)

Why this way: code and tests that run without a gpu-server keep their meaning. Scores, ties, filters, limits and
errors are those of gpu-server, and one contract test holds all homes to them.

What it refuses to do: answer out of an approximate index, and show one tenant what another one has.

Importing this package loads neither LanceDB nor pymilvus; each is imported by the first use of its home.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from medkg.errors import ConfigError, ServiceError
from medkg.importing import load
from medkg.vectors.interface import Metric, VectorStore

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.client import Services, VectorClient
    from medkg.vectors.gpu_server import GpuServerStore
    from medkg.vectors.lance import LanceStore
    from medkg.vectors.milvus import MilvusStore

__all__ = ["GpuServerStore", "LanceStore", "Metric", "MilvusStore", "VectorStore", "open_store"]

_HOMES = {
    "GpuServerStore": "medkg.vectors.gpu_server",
    "LanceStore": "medkg.vectors.lance",
    "MilvusStore": "medkg.vectors.milvus",
}


def open_store(
    connection: Services | VectorClient | None = None,
    *,
    uri: str | Path | None = None,
    tenant: str | None = None,
    home: Literal["gpu-server", "lance", "milvus"] | None = None,
) -> VectorStore:
    """Open a tenant's collections.

    Args:
        connection: What :func:`medkg.connect` gave, or its ``vector``. It stays the caller's to close.
        uri: For LanceDB a folder or the address of object storage; for Milvus a ``.db`` file or a server's address.
        tenant: Whose collections; None means the connection's tenant.
        home: Where they are. None means the gpu-server if there is a connection and its server serves the role
            ``vector`` (which is asked of it), else LanceDB.

    Raises:
        ConfigError: The tenant or the address is missing; ``field_violations`` names it.
        ModuleNotFoundError: The home's extra is not installed; the message names it.
    """
    client: Any = getattr(connection, "vector", connection)
    owner = tenant or (client.config.tenant if client is not None else None)
    if not owner:
        raise _missing("tenant", "name whose collections they are, here or in the connection's configuration")
    if home is None:
        home = "gpu-server" if client is not None and _serves_vectors(client, owner) else "lance"
    if home == "gpu-server":
        if client is None:
            raise _missing("connection", "give what medkg.connect() returned")
        from medkg.vectors.gpu_server import GpuServerStore  # noqa: PLC0415 - a home is imported by its first use

        return GpuServerStore(client, tenant=owner)
    if home not in {"lance", "milvus"}:
        raise _missing("home", f"is {home!r}; give 'gpu-server', 'lance' or 'milvus'")
    if uri is None:
        raise _missing("uri", f"the home {home!r} needs a folder, a file or an address")
    if home == "milvus":
        from medkg.vectors.milvus import MilvusStore  # noqa: PLC0415

        return MilvusStore(uri, tenant=owner)
    from medkg.vectors.lance import LanceStore  # noqa: PLC0415

    return LanceStore(uri, tenant=owner)


def _serves_vectors(client: VectorClient, tenant: str) -> bool:
    try:
        client.collections(tenant=tenant)
    except ServiceError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        return False
    return True


def _missing(field: str, problem: str) -> ConfigError:
    return ConfigError(f"open_store: {field}: {problem}", field_violations=[(field, problem)])


def __getattr__(name: str) -> object:
    """Import a home when its name is first asked for."""
    module = _HOMES.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value: object = getattr(load(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name the homes too."""
    return sorted(__all__)
