"""Many documents through the pipeline in batches, in one process that can be killed at any time and started again.

    python -m bench.backfill --address http://127.0.0.1:7070 --folder DIR --documents 10000 --batches 20

Writes the seeded notes of `bench.literature` into DIR, then runs the pipeline once for each batch that is not done yet.
Each run adds a line to DIR/progress.jsonl: the batch, what was embedded and what was there, seconds, and the largest
memory that this process has had so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from bench.literature import write_notes
from medkg.dagster import GpuServicesResource, medkg_definitions

if TYPE_CHECKING:
    from collections.abc import Iterator

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
