"""Many documents through the pipeline in batches, in one process that can be killed at any time and started again.

    python -m bench.backfill --address http://127.0.0.1:7070 --folder DIR --documents 10000 --batches 20

Writes the seeded notes of `bench.literature` into DIR, then runs the pipeline once for each batch that is not done yet.
Each run adds a line to DIR/progress.jsonl: the batch, what was embedded and what was there, seconds, and the largest
memory that this process has had so far. `kill_and_resume` starts it, kills it half-way, and starts it again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow.parquet as pq

from bench.literature import write_notes
from bench.measure import CandidateError, Row, rate, row
from medkg.dagster import GpuServicesResource, medkg_definitions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
_POLL = 0.05
_PARTS = "embedded/*/*/part-*.parquet"
COLLECTION = "notes"


@dataclass(frozen=True)
class Backfill:
    """A folder of notes and what becomes of them."""

    folder: Path
    """Of the notes, the tables, the Dagster instance."""
    documents: int
    """How many notes."""
    batches: int
    """In how many batches."""

    @property
    def tenant(self) -> str:
        """Whose they are: a tenant of their own, so that nothing else is in the collection."""
        return f"bench-{self.documents}"

    @property
    def progress(self) -> Path:
        """File with a line for each batch that was run."""
        return self.folder / "progress.jsonl"

    @property
    def log(self) -> Path:
        """File with what the processes print."""
        return self.folder / "log"

    def told(self) -> list[dict[str, Any]]:
        """What was written of the batches that were run so far."""
        if not self.progress.exists():
            return []
        return [json.loads(line) for line in self.progress.read_text(encoding="utf-8").splitlines()]

    def definitions(self, address: str) -> dg.Definitions:
        """The pipeline over the notes."""
        return medkg_definitions(
            documents=self.folder / "documents",
            services=GpuServicesResource(address=address, tenant=self.tenant),
            storage=str(self.folder / "tables"),
            collection=COLLECTION,
            batches=self.batches,
        )

    def run(self, address: str) -> Iterator[dict[str, Any]]:
        """Runs the batches that are not done yet, one after the other.

        Yields:
            What is written of each.
        """
        write_notes(self.folder / "documents", self.documents)
        job = self.definitions(address).resolve_job_def("literature")
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
            done = instance.get_materialized_partitions(dg.AssetKey("vector_index"))
            keys = job.partitions_def.get_partition_keys() if job.partitions_def else ()
            for batch in (key for key in keys if key not in done):
                started = time.monotonic()
                result = job.execute_in_process(instance=instance, partition_key=batch)
                seen = _metadata(result)
                seen |= {"batch": batch, "seconds": round(time.monotonic() - started, 3), "peak_bytes": _peak_bytes()}
                with self.progress.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(seen) + "\n")
                yield seen


@dataclass(frozen=True)
class Outcome:
    """What came of a backfill that was killed with SIGKILL while it embedded, and then started again."""

    before: Sequence[Mapping[str, Any]]
    """What was told of the batches that were done before."""
    after: Sequence[Mapping[str, Any]]
    """What was told of those that were done after it was started again."""
    kept: Sequence[str]
    """SHA-256 of the texts whose vectors were there when it was killed."""
    texts: Sequence[str]
    """SHA-256 of the texts whose vectors are there in the end, each as often as it was stored."""
    chunk_ids: Sequence[str]
    """Ids of the rows of `embeddings`, of all batches."""

    @property
    def batches(self) -> list[Mapping[str, Any]]:
        """All batches."""
        return [*self.before, *self.after]


def kill_and_resume(backfill: Backfill, address: str, *, deadline: float = 7200.0) -> Outcome:
    """Runs a backfill as a process that is killed half-way, while a batch is embedded, and then to its end.

    Args:
        backfill: One that has not begun.
        address: Of a gpu-server.
        deadline: Seconds for each of the two.

    Raises:
        CandidateError: It failed, or took too long.
    """
    tables, half = backfill.folder / "tables", backfill.batches // 2
    chunks = tables / "chunks" / f"{half:0{len(str(backfill.batches - 1))}d}.parquet"
    with _process(backfill, address) as process:
        ends = time.monotonic() + deadline
        while not _some_are_embedded(chunks, tables):
            if process.poll() is not None or time.monotonic() > ends:
                raise CandidateError(backfill.log.read_text(encoding="utf-8")[-4000:])
            time.sleep(_POLL)
    before, kept = backfill.told(), _column(tables, _PARTS, "content_sha256")
    with _process(backfill, address) as process:
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired:
            code = None
    if code != 0:
        raise CandidateError(backfill.log.read_text(encoding="utf-8")[-4000:])
    return Outcome(
        before=before,
        after=backfill.told()[len(before) :],
        kept=kept,
        texts=_column(tables, _PARTS, "content_sha256"),
        chunk_ids=_column(tables, "embeddings/*.parquet", "chunk_id"),
    )


def _some_are_embedded(chunks: Path, tables: Path) -> bool:
    """Whether the first vectors of a batch with these chunks are stored."""
    if not chunks.exists():
        return False
    since = chunks.stat().st_mtime_ns
    return any(part.stat().st_mtime_ns > since for part in tables.glob(_PARTS))


def rows(outcome: Outcome, *, documents: int, points: int) -> list[Row]:
    """The outcome as rows of the bench; `points` is how many the collection has in the end."""
    chunks, last = len(outcome.chunk_ids), outcome.after[-1]
    seconds = [one["chunks"] / one["seconds"] for one in outcome.batches]
    embedded = len(outcome.kept) + sum(one["texts_embedded"] for one in outcome.after)
    peak = last["peak_bytes"]
    name = f"{documents:,} documents, killed half-way"
    return [
        row(f"{name}: documents in the end", [sum(one["documents"] for one in outcome.batches)], "docs", bar=documents),
        row(f"{name}: points for each chunk", [points / max(1, len(set(outcome.chunk_ids)))], "ratio", bar=1.0),
        row(f"{name}: vectors kept, for each distinct text", [embedded / len(set(outcome.texts))], "times", bar=1.0),
        row(f"{name}: largest memory, last batch to first", [peak / outcome.after[0]["peak_bytes"]], "times", bar=1.25),
        row(f"{name}: largest memory of the pipeline's process", [peak / 2**20], "MiB"),
        rate(f"{name}: {chunks:,} chunks, through all steps", seconds, "chunks/s"),
    ]


@contextmanager
def _process(backfill: Backfill, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """The backfill in a process of its own, which does not outlive the block."""
    backfill.folder.mkdir(parents=True, exist_ok=True)
    sizes = ("--documents", str(backfill.documents), "--batches", str(backfill.batches))
    command = [sys.executable, "-W", "ignore", "-m", "bench.backfill", "--address", address]
    with backfill.log.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--folder", str(backfill.folder), *sizes], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _column(folder: Path, pattern: str, name: str) -> list[Any]:
    """A column of all tables whose path matches."""
    return [value for path in folder.glob(pattern) for value in pq.read_table(path, columns=[name])[name].to_pylist()]


def _metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    embedded = result.asset_materializations_for_node("embeddings")[0].metadata
    documents = result.asset_materializations_for_node("documents")[0].metadata
    return {
        "documents": documents["dagster/row_count"].value,
        "chunks": embedded["dagster/row_count"].value,
        "texts_embedded": embedded["medkg/texts_embedded"].value,
        "chunks_reused": embedded["medkg/chunks_reused"].value,
        "checks_passed": all(one.passed for one in result.get_asset_check_evaluations()),
    }


def _peak_bytes() -> int:
    """The largest resident memory of this process so far; Linux tells it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """Runs what is not done yet, and prints a line for each batch."""
    parser = argparse.ArgumentParser(prog="python -m bench.backfill", description=__doc__)
    parser.add_argument("--address", required=True, help="of a gpu-server")
    parser.add_argument("--folder", type=Path, required=True, help="of notes, tables and runs")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    for seen in Backfill(options.folder, options.documents, options.batches).run(options.address):
        print(json.dumps(seen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
