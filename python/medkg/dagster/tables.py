"""The assets' outputs as Arrow tables, and back: what `TableIOManager` stores, and what any other tool can read.

One row per document, chunk, vector, collection or question. Every row says where it is from: `tenant`, `run_id` and,
where it has them, `document_id`, `document_sha256`, `model`, `model_digest`. Vectors are fixed-size lists of float32.
What belongs to the output as a whole (whose it is, what was set aside) stands in the schema's metadata under
`medkg.output`, as JSON, beside `medkg.kind`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from medkg.chunking.chunk import BoundingBox, Chunk
from medkg.dagster import outputs
from medkg.dagster.table_files import rows_of, vectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_KIND, _HEAD = b"medkg.kind", b"medkg.output"
_TEXT: Final = pa.string()
_COLUMNS: Final = {
    "str": _TEXT,
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "tuple[str, ...]": pa.list_(_TEXT),
    "Sequence[str]": pa.list_(_TEXT),
    "tuple[int, ...]": pa.list_(pa.int64()),
}
"""Columns of the attributes of an output, by their annotation."""


def _columns(kind: Any, **nested: pa.DataType) -> list[pa.Field]:
    """A column for each attribute of a dataclass; an annotation that is not known here is an error at import."""
    return [pa.field(one.name, nested.get(one.name) or _COLUMNS[str(one.type)]) for one in fields(kind)]


_DOCUMENTS: Final = pa.schema(_columns(outputs.DocumentRecord))
_CHUNKS: Final = pa.schema(_columns(Chunk, bounding_boxes=pa.list_(pa.struct(_columns(BoundingBox)))))
_ANSWERS: Final = pa.schema(_columns(outputs.Answer, passages=pa.list_(pa.struct(_columns(outputs.Passage)))))


def to_table(value: object, *, run_id: str) -> pa.Table:
    """An output as a table.

    Args:
        value: What an asset of medkg returned, or a `pyarrow.Table`, which is taken as it is.
        run_id: The Dagster run that stores it.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, pa.Table):
        return value
    for kind in _KINDS:
        if kind.holds(value):
            head = kind.head(value)
            table = kind.rows(value)
            origin = {"tenant": str(head.get("tenant", "")), "run_id": run_id}
            for name, text in origin.items():
                if name not in table.column_names:
                    column = pa.array([text] * table.num_rows, _TEXT)
                    table = table.append_column(name, column)
            described = {_KIND: kind.name.encode(), _HEAD: json.dumps(head).encode()}
            return table.replace_schema_metadata(described)
    msg = (
        f"{type(value).__name__} is no table: TableIOManager stores the outputs of medkg's assets and pyarrow.Table;"
        " give the asset another io_manager_key, or return a table"
    )
    raise TypeError(msg)


def from_table(table: pa.Table) -> Any:
    """What `to_table` was given; a table that it did not make is given back as it is."""
    described = table.schema.metadata or {}
    name = described.get(_KIND, b"").decode()
    for kind in _KINDS:
        if kind.name == name:
            return kind.build(json.loads(described[_HEAD]), table)
    return table


@dataclass(frozen=True)
class _Kind:
    """How one sort of output becomes a table, and what is made of that."""

    name: str
    holds: Callable[[Any], bool]
    head: Callable[[Any], dict[str, Any]]
    rows: Callable[[Any], pa.Table]
    build: Callable[[Mapping[str, Any], pa.Table], Any]


def _head(value: Any, *names: str) -> dict[str, Any]:
    head = {name: getattr(value, name) for name in names}
    return {**head, "set_aside": [asdict(one) for one in value.set_aside]}


def _set_aside(head: Mapping[str, Any]) -> list[outputs.SetAside]:
    return [outputs.SetAside(**one) for one in head["set_aside"]]


def _document_rows(value: outputs.DocumentSet) -> pa.Table:
    return _record_rows(value.documents)


def _record_rows(documents: Sequence[outputs.DocumentRecord]) -> pa.Table:
    table = pa.Table.from_pylist([asdict(one) for one in documents], schema=_DOCUMENTS)
    return table.rename_columns(["document_sha256" if name == "sha256" else name for name in table.column_names])


def _records(table: pa.Table) -> list[outputs.DocumentRecord]:
    table = table.rename_columns(["sha256" if name == "document_sha256" else name for name in table.column_names])
    return [outputs.DocumentRecord(**row) for row in table.select(_DOCUMENTS.names).to_pylist()]


def _documents(head: Mapping[str, Any], table: pa.Table) -> outputs.DocumentSet:
    return outputs.DocumentSet(head["tenant"], _records(table), _set_aside(head))


def _conversion_rows(value: outputs.ConversionSet) -> pa.Table:
    table = _record_rows([one.document for one in value.conversions])
    return table.append_column("task", pa.array([one.task for one in value.conversions], _TEXT))


def _conversions(head: Mapping[str, Any], table: pa.Table) -> outputs.ConversionSet:
    tasks = table.column("task").to_pylist()
    made = [outputs.Conversion(document, task) for document, task in zip(_records(table), tasks, strict=True)]
    return outputs.ConversionSet(head["tenant"], made, _set_aside(head))


def _chunk_rows(value: outputs.ChunkSet) -> pa.Table:
    table = pa.Table.from_pylist([chunk.to_dict() for chunk in value.chunks], schema=_CHUNKS)
    return table.append_column("model", pa.array([value.model] * len(value.chunks), _TEXT))


def _chunks(head: Mapping[str, Any], table: pa.Table) -> outputs.ChunkSet:
    chunks = [Chunk.from_dict(row) for row in table.select(_CHUNKS.names).to_pylist()]
    return outputs.ChunkSet(head["tenant"], chunks, head["model"], head["max_tokens"], _set_aside(head))


_PER_ROW: Final = {
    "chunk_ids": "chunk_id",
    "document_ids": "document_id",
    "document_sha256": "document_sha256",
    "content_sha256": "content_sha256",
    "embedded_by": "embedded_by",
}
"""Attributes of an `EmbeddingSet` that have a text per row, and their columns."""
_EMBEDDING_HEAD: Final = ("tenant", "model", "model_digest", "prompt", "chunks_digest", "dimension", "normalized")


def _embedding_rows(value: outputs.EmbeddingSet) -> pa.Table:
    count = len(value.chunk_ids)
    columns = {column: pa.array(_texts(getattr(value, name), count), _TEXT) for name, column in _PER_ROW.items()}
    columns["vector"] = rows_of(value.vectors)
    for name in ("model", "model_digest", "prompt"):
        columns[name] = pa.array([getattr(value, name)] * count, _TEXT)
    return pa.table(columns)


def _texts(values: Sequence[str], count: int) -> list[str]:
    """A text per row; none where the output was made without them."""
    return list(values) or [""] * count


def _embeddings(head: Mapping[str, Any], table: pa.Table) -> outputs.EmbeddingSet:
    texts = {name: table.column(column).to_pylist() for name, column in _PER_ROW.items()}
    own = {name: head[name] for name in _EMBEDDING_HEAD}
    return outputs.EmbeddingSet(vectors=vectors_of(table.column("vector")), set_aside=_set_aside(head), **texts, **own)


def _index_rows(value: outputs.IndexSummary) -> pa.Table:
    return pa.Table.from_pylist([asdict(value)])


def _answer_rows(value: list[outputs.Answer]) -> pa.Table:
    return pa.Table.from_pylist([asdict(answer) for answer in value], schema=_ANSWERS)


def _answers(_head: Mapping[str, Any], table: pa.Table) -> list[outputs.Answer]:
    return [
        outputs.Answer(
            row["question"],
            tuple(
                outputs.Passage(**{**passage, "headings": tuple(passage["headings"])}) for passage in row["passages"]
            ),
        )
        for row in table.select(_ANSWERS.names).to_pylist()
    ]


def _is_answers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, outputs.Answer) for one in value)


_KINDS: Final = (
    _Kind(
        "documents",
        lambda v: isinstance(v, outputs.DocumentSet),
        lambda v: _head(v, "tenant"),
        _document_rows,
        _documents,
    ),
    _Kind(
        "conversions",
        lambda v: isinstance(v, outputs.ConversionSet),
        lambda v: _head(v, "tenant"),
        _conversion_rows,
        _conversions,
    ),
    _Kind(
        "chunks",
        lambda v: isinstance(v, outputs.ChunkSet),
        lambda v: _head(v, "tenant", "model", "max_tokens"),
        _chunk_rows,
        _chunks,
    ),
    _Kind(
        "embeddings",
        lambda v: isinstance(v, outputs.EmbeddingSet),
        lambda v: _head(v, *_EMBEDDING_HEAD),
        _embedding_rows,
        _embeddings,
    ),
    _Kind(
        "index",
        lambda v: isinstance(v, outputs.IndexSummary),
        asdict,
        _index_rows,
        lambda head, _: outputs.IndexSummary(**head),
    ),
    _Kind("answers", _is_answers, lambda _: {}, _answer_rows, _answers),
)
