"""Many documents in batches: bounded memory, and a process that is killed half-way loses and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

ROOT = Path(__file__).parents[2]
DEADLINE = 3600.0


def start(folder: Path, server: LocalServer, documents: int, batches: int) -> subprocess.Popen[bytes]:
    """A process that runs the batches that are not done."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.backfill", "--address", server.address]
    sizes = ("--documents", str(documents), "--batches", str(batches))
    with (folder / "log").open("ab") as log:
        environment = {**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1"}
        return subprocess.Popen([*command, "--folder", str(folder), *sizes], cwd=ROOT, env=environment, stderr=log)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def progress(folder: Path) -> list[dict[str, Any]]:
    path = folder / "progress.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def column(folder: Path, pattern: str, name: str) -> list[Any]:
    """A column of all tables whose path matches."""
    files = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    return [value for path in files for value in pq.read_table(path, columns=[name]).column(name).to_pylist()]


@pytest.mark.parametrize(
    ("documents", "batches"),
    [
        pytest.param(200, 4, id="200"),
        pytest.param(10_000, 20, id="10000", marks=[pytest.mark.slow, pytest.mark.timeout(2 * DEADLINE)]),
    ],
)
def test_a_backfill_that_is_killed_half_way_ends_with_everything_once(
    tmp_path: Path, server: LocalServer, documents: int, batches: int
) -> None:
    half = batches // 2
    chunks_of_the_next = tmp_path / "tables" / "chunks" / f"{half:0{len(str(batches - 1))}d}.parquet"
    first = start(tmp_path, server, documents, batches)
    try:
        wait_until(chunks_of_the_next.exists, first, tmp_path)  # a batch is being embedded
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = progress(tmp_path)
    assert len(done) == half
    kept = column(tmp_path, "tables/embedded/*/*/part-*.parquet", "content_sha256")
    assert len(kept) >= sum(one["texts_embedded"] for one in done)

    second = start(tmp_path, server, documents, batches)
    assert second.wait(DEADLINE) == 0, (tmp_path / "log").read_text(encoding="utf-8")[-4000:]
    resumed = progress(tmp_path)[half:]
    everything = progress(tmp_path)
    assert [one["batch"] for one in everything] == [path.stem for path in sorted(chunks_of_the_next.parent.iterdir())]
    assert all(one["checks_passed"] for one in everything)
    assert sum(one["documents"] for one in everything) == documents

    ids = column(tmp_path, "tables/embeddings/*.parquet", "chunk_id")
    assert len(ids) == len(set(ids)) == sum(one["chunks"] for one in everything)
    texts = column(tmp_path, "tables/embedded/*/*/part-*.parquet", "content_sha256")
    assert len(texts) == len(set(texts))
    assert sum(one["texts_embedded"] for one in resumed) == len(texts) - len(kept)
    with medkg.connect(address=server.address, tenant=f"bench-{documents}") as services:
        assert services.vector.statistics("notes").points == len(ids)

    # Each process has its own peak; what a batch more costs would add up in it.
    assert resumed[-1]["peak_bytes"] < 1.25 * resumed[0]["peak_bytes"]
