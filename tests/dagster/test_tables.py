"""Outputs as tables: the same comes back, other tools can read it, and a write that breaks off changes nothing."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from medkg.chunking import Chunk
from medkg.chunking.chunk import BoundingBox
from medkg.dagster import (
    Answer,
    ChunkSet,
    Conversion,
    ConversionSet,
    DocumentRecord,
    DocumentSet,
    EmbeddingSet,
    IndexSummary,
    Passage,
    SetAside,
)
from medkg.dagster.io_manager import TableIOManager
from medkg.dagster.whole_files import write_whole

ASIDE = [SetAside("gone.md", "no such file")]
BOX = BoundingBox(2, 1.0, 2.0, 3.0, 4.0, "BOTTOMLEFT")
CHUNK = Chunk(
    *("gout:00000:1", "gout", "Gout, naïve", "gout.md", 0, "a\n\u200bb", "Gout\na\n\u200bb", ("Gout", "Treatment"), 2),
    *((2, 3), (BOX,), ("#/texts/1",), 7, "f" * 64),
)
PLAIN = replace(CHUNK, chunk_id="gout:00001:2", ordinal=1, page=None, pages=(), bounding_boxes=(), headings=())
VECTORS = np.random.default_rng(5).normal(size=(2, 384)).astype(np.float32)
EMBEDDED = EmbeddingSet(
    *("clinic", ["gout:00000:1", "gout:00001:2"], VECTORS, "minilm", "d" * 64, ASIDE, "c" * 64, ["gout", "gout"]),
    *(["f" * 64] * 2, ["1" * 64, "2" * 64], ["run-1", "run-2"], "passage: "),
)
PASSAGE = Passage(1, 2.5, 1.5, 0.9, 3, "gout:00000:1", "gout", "Gout", "gout.md", ("Gout",), None, "a")
OUTPUTS: dict[str, Any] = {
    "documents": DocumentSet(
        "clinic", [DocumentRecord("gout", "gout.md", "/d/gout.md", "text/markdown", "f", 9)], ASIDE
    ),
    "conversions": ConversionSet(
        "clinic", [Conversion(DocumentRecord("g", "g.pdf", "/d/g.pdf", "application/pdf", "f", 9), "task-1")], []
    ),
    "chunks": ChunkSet("clinic", [CHUNK, PLAIN], "minilm", 256, ASIDE),
    "embeddings": EMBEDDED,
    "no_embeddings": EmbeddingSet("clinic", [], np.empty((0, 384), np.float32), "minilm", "d" * 64, []),
    "index": IndexSummary("clinic", "literature", "minilm", 384, "cosine", 2, 2, 0, 0, "cpu", "d" * 64, 1),
    "answers": [Answer("What is gout?", (PASSAGE,)), Answer("And asthma?", ())],
}


def assert_same(found: Any, stored: Any) -> None:
    if isinstance(stored, EmbeddingSet):
        np.testing.assert_array_equal(found.vectors, stored.vectors)
        blank = np.empty((0, 0), np.float32)
        rows = ("document_ids", "document_sha256", "content_sha256", "embedded_by")
        sparse = {name: () for name in rows if not getattr(stored, name)}
        found, stored = replace(found, vectors=blank, **sparse), replace(stored, vectors=blank, **sparse)
        assert {**vars(found), "vectors": 0} == {**vars(stored), "vectors": 0}
    else:
        assert found == stored


def round_trip(manager: TableIOManager, values: Mapping[str, Any] = OUTPUTS) -> None:
    """Stores values as assets in one run of a real instance, and compares what the next one loads."""

    def storing(name: str) -> dg.AssetsDefinition:
        @dg.asset(name=name)
        def stored() -> Any:
            return values[name]

        return stored

    @dg.asset(ins={name: dg.AssetIn(name) for name in values})
    def compared(**found: Any) -> dg.MaterializeResult:
        for name, value in values.items():
            assert_same(found[name], value)
        return dg.MaterializeResult()

    assets = [storing(name) for name in values]
    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"io_manager": manager}
        assert dg.materialize(assets, instance=instance, resources=resources).success
        assert dg.materialize([*assets, compared], selection=[compared], instance=instance, resources=resources).success


@pytest.mark.parametrize("form", ["parquet", "arrow", "lance"])
def test_outputs_come_back_as_they_were(tmp_path: Path, form: Any) -> None:
    round_trip(TableIOManager(base_path=str(tmp_path / "tables"), format=form))
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"{name}.{form}" for name in OUTPUTS}


def test_object_storage_has_the_same_tables() -> None:
    folder = UPath("memory://medkg-test-tables")
    round_trip(TableIOManager(base_path=str(folder)), {"embeddings": EMBEDDED})
    assert (folder / "embeddings.parquet").exists()


def test_any_reader_finds_vectors_as_fixed_size_lists_with_where_they_are_from(tmp_path: Path) -> None:
    round_trip(TableIOManager(base_path=str(tmp_path)), {"embeddings": EMBEDDED})
    table = pq.read_table(tmp_path / "embeddings.parquet")
    kind = table.schema.field("vector").type
    assert (pa.types.is_fixed_size_list(kind), kind.list_size, kind.value_type) == (True, 384, pa.float32())
    row = table.to_pylist()[1]
    assert {name: row[name] for name in row if name not in {"vector", "run_id"}} == {
        "chunk_id": "gout:00001:2",
        "document_id": "gout",
        "document_sha256": "f" * 64,
        "content_sha256": "2" * 64,
        "embedded_by": "run-2",
        "model": "minilm",
        "model_digest": "d" * 64,
        "prompt": "passage: ",
        "tenant": "clinic",
    }
    assert row["run_id"]


def test_partitions_and_tenants_have_a_file_each_that_no_key_leads_out_of(tmp_path: Path) -> None:
    parts = dg.MultiPartitionsDefinition(
        {"batch": dg.StaticPartitionsDefinition(["..", "1"]), "tenant": dg.StaticPartitionsDefinition(["a", "b"])}
    )

    @dg.asset(partitions_def=parts)
    def numbers(context: dg.AssetExecutionContext) -> Any:
        return pa.table({"key": [str(context.partition_key)]})

    @dg.asset(partitions_def=parts)
    def doubled(numbers: Any) -> Any:
        return pa.table({"key": [numbers.column("key")[0].as_py() * 2]})

    resources = {"io_manager": TableIOManager(base_path=str(tmp_path / "deep" / "tables"))}
    with dg.DagsterInstance.ephemeral() as instance:
        for batch, tenant in (("..", "a"), ("1", "b")):
            key = dg.MultiPartitionKey({"batch": batch, "tenant": tenant})
            assert dg.materialize([numbers, doubled], instance=instance, partition_key=key, resources=resources).success
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet"))
    assert files == [
        f"deep/tables/{asset}/{key}.parquet" for asset in ("doubled", "numbers") for key in ("%2E%2E/a", "1/b")
    ]
    assert pq.read_table(tmp_path / files[0]).column("key")[0].as_py() == "..|a..|a"


def test_a_value_that_is_no_table_is_refused_by_name(tmp_path: Path) -> None:
    @dg.asset
    def thing() -> Any:
        return {"no": "table"}

    resources = {"io_manager": TableIOManager(base_path=str(tmp_path))}
    (failed,) = dg.materialize([thing], resources=resources, raise_on_error=False).get_step_failure_events()
    error = failed.step_failure_data.error
    assert error is not None
    assert error.cause is not None
    assert "dict is no table" in error.cause.message
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys, signal
from pathlib import Path
from upath import UPath
from medkg.dagster import whole_files
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
whole_files.write_whole(UPath(sys.argv[1]), b"new" * 100_000)
"""


def test_a_writer_that_is_killed_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = UPath(tmp_path / "table.parquet")
    write_whole(path, b"old")
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2  # what it had written stands beside, under a hidden name
    write_whole(path, b"newer")
    assert path.read_bytes() == b"newer"
