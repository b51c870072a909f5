"""The home in Milvus: a local file, a server or a cluster. It comes with `pip install 'medkg[milvus]'`.

A tenant and a collection are one Milvus collection, `medkg_TENANT_NAME`, where TENANT is a digest and NAME is spelt
with the characters that Milvus takes. A point's primary key is a digest of its id, because an id may have characters
that expressions of Milvus cannot quote. The index is FLAT, so search is exact, and reads are strongly consistent.

A local file belongs to one process at a time.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from medkg.extras import packages_of
from medkg.results import CollectionInfo
from medkg.vectors import checks
from medkg.vectors.exact import ExactStore, Rows

with packages_of("milvus", "pymilvus", user="medkg.vectors.MilvusStore needs"):
    from pymilvus import DataType, MilvusClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from medkg.vectors.interface import Metric

__all__ = ["MilvusStore"]

_METRICS: Final = {"cosine": "COSINE", "dot": "IP", "l2": "L2"}
_SPELT: Final = {".": "_d", "-": "_h", "_": "_u"}
_READ: Final = {spelt: character for character, spelt in _SPELT.items()}
_LONGEST: Final = 255
"""Characters of a collection's name in Milvus."""
_BATCH: Final = 1_000
_WRITE_BYTES: Final = 16 * 1024 * 1024


class MilvusStore(ExactStore):
    """Collections in Milvus."""

    __slots__ = ("_client", "_loaded", "_prefix")

    def __init__(self, uri: str | Path, *, tenant: str, token: str = "") -> None:
        """Open a local file or connect to a server.

        Args:
            uri: A path that ends in ``.db``, or an address such as ``http://127.0.0.1:19530``.
            tenant: Whose collections.
            token: What the server asks for, if it does.
        """
        super().__init__(tenant)
        self._prefix = f"medkg_{hashlib.sha256(tenant.encode()).hexdigest()[:32]}_"
        self._loaded: set[str] = set()
        self._client: Any = MilvusClient(uri=str(uri), token=token)

    def close(self) -> None:
        """Let the connection or the file go; further calls raise."""
        self._client.close()

    def create(
        self,
        name: str,
        dimension: int,
        metric: Metric = "cosine",
        *,
        sparse_dimension: int = 0,
        exist_ok: bool = False,
    ) -> CollectionInfo:
        """See :meth:`VectorStore.create`; a name with very many of the characters ``._-`` is too long for Milvus."""
        checks.collection(name, dimension, metric)
        if len(self._spelt(name)) > _LONGEST:
            raise checks.invalid("collection.name", "is too long for Milvus: each of the characters . _ - counts twice")
        return super().create(name, dimension, metric, sparse_dimension=sparse_dimension, exist_ok=exist_ok)

    def _spelt(self, name: str) -> str:
        return self._prefix + re.sub(r"[._-]", lambda found: _SPELT[found[0]], name)

    def _names(self) -> list[str]:
        found = (
            name.removeprefix(self._prefix) for name in self._client.list_collections() if name.startswith(self._prefix)
        )
        return [re.sub(r"_[dhu]", lambda spelt: _READ[spelt[0]], name) for name in found]

    def _describe(self, name: str) -> CollectionInfo | None:
        spelt = self._spelt(name)
        if not self._client.has_collection(spelt):
            return None
        if spelt not in self._loaded:
            self._client.load_collection(spelt)
            self._loaded.add(spelt)
        fields = {field["name"]: field for field in self._client.describe_collection(spelt)["fields"]}
        kind = self._client.describe_index(spelt, "vector")["metric_type"]
        metric = next(metric for metric, theirs in _METRICS.items() if theirs == kind)
        dimension = int(fields["vector"]["params"]["dim"])
        return CollectionInfo(name, dimension, cast("Metric", metric), "f32", created=False)

    def _make(self, info: CollectionInfo) -> None:
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("id", DataType.VARCHAR, max_length=checks.MAX_ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=info.dimension)
        schema.add_field("payload", DataType.VARCHAR, max_length=checks.MAX_PAYLOAD_BYTES - 1)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type=_METRICS[info.metric])
        self._client.create_collection(
            self._spelt(info.name), schema=schema, index_params=index, consistency_level="Strong"
        )

    def _remove(self, name: str) -> None:
        self._client.drop_collection(self._spelt(name))
        self._loaded.discard(self._spelt(name))

    def _count(self, name: str) -> int:
        return int(self._client.query(self._spelt(name), filter="", output_fields=["count(*)"])[0]["count(*)"])

    def _write(self, info: CollectionInfo, rows: Rows) -> None:
        waiting: list[dict[str, Any]] = []
        size = 0
        for one, vector, payload in zip(rows.ids, rows.vectors, rows.payloads, strict=True):
            # A payload begins with {, which is left out: that makes room for the last byte that a payload may have.
            waiting.append({"key": _key(one), "id": one, "vector": vector, "payload": payload[1:]})
            size += vector.nbytes + 4 * len(payload) + 4 * len(one)
            if size >= _WRITE_BYTES or len(waiting) >= _BATCH:
                self._client.upsert(self._spelt(info.name), waiting)
                waiting, size = [], 0
        if waiting:
            self._client.upsert(self._spelt(info.name), waiting)

    def _erase(self, name: str, ids: Sequence[str]) -> None:
        self._client.delete(self._spelt(name), ids=[_key(one) for one in ids])

    def _read(self, info: CollectionInfo, ids: Sequence[str], *, vectors: bool, payloads: bool) -> Rows:
        fields = _fields(vectors=vectors, payloads=payloads)
        found = self._client.get(self._spelt(info.name), ids=[_key(one) for one in ids], output_fields=fields)
        return _rows(found, [])

    def _scan(self, info: CollectionInfo, *, vectors: bool, payloads: bool) -> Iterator[Rows]:
        fields = _fields(vectors=vectors, payloads=payloads)
        pages = self._client.query_iterator(self._spelt(info.name), batch_size=_BATCH, output_fields=fields)
        try:
            while found := pages.next():
                yield _rows(found, [])
        finally:
            pages.close()

    def _candidates(self, info: CollectionInfo, query: npt.NDArray[np.float32], limit: int, *, payloads: bool) -> Rows:
        (found,) = self._client.search(
            self._spelt(info.name),
            data=[query],
            anns_field="vector",
            limit=limit,
            output_fields=_fields(vectors=True, payloads=payloads),
            search_params={"metric_type": _METRICS[info.metric]},
        )
        # Milvus tells the square of the Euclidean distance.
        sign = -1 if info.metric == "l2" else 1
        return _rows([hit["entity"] for hit in found], [sign * hit["distance"] for hit in found])


def _key(one: str) -> str:
    return hashlib.sha256(one.encode()).hexdigest()


def _fields(*, vectors: bool, payloads: bool) -> list[str]:
    return ["id", *["vector"] * vectors, *["payload"] * payloads]


def _rows(found: Sequence[dict[str, Any]], nearness: list[float]) -> Rows:
    vectors = np.array([row.get("vector", ()) for row in found], dtype=np.float32)
    payloads = ["{" + text if (text := row.get("payload")) else "" for row in found]
    return Rows([row["id"] for row in found], vectors, payloads, np.array(nearness, dtype=np.float32))
