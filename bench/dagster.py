"""The dagster suite: typed contracts; 10,000 seeded documents through the pipeline, killed half-way and resumed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import medkg
from bench import contracts
from bench.backfill import COLLECTION, Backfill, kill_and_resume, rows
from bench.measure import CandidateError, Row, missing
from medkg.local import LocalServer, LocalServerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DOCUMENTS, BATCHES = 10_000, 20


def measure(binary: Path, model: Path, *, folder: Path, say: Callable[[str], None]) -> list[Row]:
    """All rows of the suite.

    Args:
        binary: gpu-server.
        model: Folder of all-MiniLM-L6-v2.
        folder: Gets notes, tables and logs; what an earlier bench left there is removed.
        say: Progress.
    """
    backfill = Backfill(folder / "backfill", DOCUMENTS, BATCHES)
    shutil.rmtree(backfill.folder, ignore_errors=True)
    backfill.folder.mkdir(parents=True)
    server = LocalServer(
        binary,
        services=("embedding", "vector", "gpu"),
        embedding_models={"all-MiniLM-L6-v2": model},
        data_dir=backfill.folder / "vectors",
        log_path=backfill.folder / "gpu-server.log",
    )
    try:
        with server:
            of_contracts = contracts.measure(server.address, say=say)
            say(f"{DOCUMENTS:,} documents in {BATCHES} batches, killed half-way")
            outcome = kill_and_resume(backfill, server.address)
            with medkg.connect(address=server.address, tenant=backfill.tenant) as services:
                points = services.vector.statistics(COLLECTION).points
    except (CandidateError, LocalServerError) as error:
        return [missing(f"{DOCUMENTS:,} documents, killed half-way", str(error), unit="docs", bar=DOCUMENTS)]
    return of_contracts + rows(outcome, documents=DOCUMENTS, points=points)
