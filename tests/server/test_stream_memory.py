"""A stream of any length takes the same memory, in the process that asks and in the one that answers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

import pytest

from .checkpoints import write_bert

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

# In a process of its own: pytest's memory is its own business. A text is 2 KiB and a dozen tokens, a vector is 1 KiB:
# whoever keeps texts or vectors shows.
STREAM = """
    import os, pathlib, sys, time
    import medkg

    address, count, server = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def resident(pid):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    pulled = 0

    def texts():
        global pulled
        for index in range(count):
            pulled = index + 1
            yield f"Patient {index} was given {index % 500} mg of aspirin. " + "x" * 2000

    def report(done):
        print(done, resident(os.getpid()), resident(server), f"{time.monotonic() - begun:.1f}", flush=True)

    client = medkg.EmbeddingClient(address=address, tenant="memory", timeout=300)
    done, begun = 0, time.monotonic()
    for number, answer in enumerate(client.embed_stream(texts(), batch_size=100)):
        done += len(answer.vectors)
        assert pulled - done <= 400, f"{pulled - done} texts ahead"
        if number % max(1, count // 100 // 50) == 0:
            report(done)
    report(done)
"""
BOUND = 8 * 1024 * 1024


class Sample(NamedTuple):
    texts: int
    client: int
    server: int
    seconds: float


def told(line: str) -> Sample:
    texts, client, server, seconds = line.split()
    return Sample(int(texts), int(client), int(server), float(seconds))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "count", [pytest.param(60_000, id="60k"), pytest.param(1_000_000, id="1M", marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_a_stream(
    start_server: Callable[..., LocalServer], tmp_path: Path, minilm_dir: Path, count: int
) -> None:
    checkpoint = write_bert(tmp_path / "wide", minilm_dir, seed=80, hidden=256)
    server = start_server(
        services=("embedding",), embedding_models={"wide": checkpoint.folder}, reranking_models={}, data_dir=None
    )
    command = [sys.executable, "-c", textwrap.dedent(STREAM), server.address, str(count), str(server.pid)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=7000, check=False)
    server.stop()
    assert run.returncode == 0, run.stderr
    samples = [told(line) for line in run.stdout.splitlines()]
    assert samples[-1].texts == count
    print(*samples[:: max(1, len(samples) // 10)], samples[-1], sep="\n")
    # The first half is there to settle in: an allocator may take long for it. Whoever kept texts or vectors would
    # grow by 60 or 30 MiB in the second half of 60,000.
    warm = [sample for sample in samples if sample.texts <= count // 2]
    rest = [sample for sample in samples if sample.texts > count // 2]
    for side in ("client", "server"):
        before = max(getattr(sample, side) for sample in warm)
        most = max(getattr(sample, side) for sample in rest)
        assert most - before < BOUND, f"the {side} grew by {(most - before) >> 20} MiB after the first half"
