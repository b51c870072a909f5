"""Many documents in processes: the same results in the same order, each failure alone, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medkg.chunking import (
    Chunker,
    ChunkingQuality,
    DocumentChunks,
    DocumentFailure,
    chunk_documents,
    iter_chunks,
)
from medkg.chunking.parallel import map_in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"


@pytest.fixture(scope="module")
def clinical() -> Chunker:
    tokenizer = Path(os.environ["MEDKG_TEST_MODEL_DIR"], "tokenizer.json").read_bytes()
    return Chunker(tokenizer, 256, strategy="clinical")


def double(number: int) -> int:
    """Work for another process; some of it goes wrong."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise KeyError(number)
    return 2 * number


def lost(number: int, code: int | None) -> int:
    return -(code or 0) * 1000 - number


def counted(upto: int, taken: list[int]) -> Iterator[int]:
    for number in range(upto):
        taken.append(number)
        yield number


def test_results_keep_their_order_and_an_item_that_kills_its_process_is_lost_alone() -> None:
    taken: list[int] = []
    results = map_in_order(partial(double), (n for n in counted(7, taken)), workers=2, lost=lost)
    found = []
    for result in results:
        found.append(result)
        assert len(taken) - len(found) <= 4, "no more than two items for each process are under way"
    assert found == [0, 2, 4, 9 * 1000 - 3, 8, 10, 12]
    assert multiprocessing.active_children() == []


def test_an_error_of_the_work_is_raised_here_and_ends_the_processes() -> None:
    with pytest.raises(KeyError, match="7"):
        list(map_in_order(double, [1, 7, 2], workers=1, lost=lost))
    assert multiprocessing.active_children() == []


@pytest.mark.requirement("isolation 1.4")
def test_processes_give_what_this_process_gives_and_leaving_early_ends_them(clinical: Chunker, tmp_path: Path) -> None:
    (tmp_path / "a-bad.md").write_text("", encoding="utf-8")
    paths = [SAMPLES, tmp_path]
    here = chunk_documents(paths, clinical)
    told: list[tuple[int, int]] = []
    there = chunk_documents(paths, clinical, workers=2, progress=lambda done, files, _: told.append((done, files)))
    assert there.chunks == here.chunks
    assert [document.source for document in there.documents] == [document.source for document in here.documents]
    assert [failure.to_dict() for failure in there.failures] == [failure.to_dict() for failure in here.failures]
    assert told == [(done, 11) for done in range(1, 12)]
    outcomes = iter_chunks(paths, clinical, workers=2)
    next(outcomes)
    assert len(multiprocessing.active_children()) == 2
    outcomes.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(ValueError, match="workers: -1 is negative"):
        next(iter_chunks(paths, clinical, workers=-1))


@pytest.mark.requirement("isolation 1.4")
def test_the_quality_report_counts_what_was_made_and_how_fast(clinical: Chunker, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("", encoding="utf-8")
    report = chunk_documents([SAMPLES, tmp_path], clinical)
    told = report.quality.to_dict()
    counts = sorted(chunk.token_count for chunk in report.chunks)
    assert told["documents"] == len(report.documents) == 10
    assert told["failed"] == 1
    assert told["chunks"] == len(counts)
    assert told["tokens"] == sum(counts)
    assert told["longest"] == counts[-1] <= told["limit"] == 256
    assert told["median"] == counts[(len(counts) + 1) // 2 - 1]
    assert told["fill"] == pytest.approx(sum(counts) / len(counts) / 256, abs=1e-4)
    assert told["problems"] == {}
    assert told["uncovered_items"] == 0
    assert sum(told["sections"].values()) == len(counts)
    assert told["tables"] == sum("\n| -" in chunk.text for chunk in report.chunks) > 0
    for rate in ("documents", "chunks", "tokens", "megabytes"):
        assert told[f"{rate}_per_second"] > 0
    assert told["loading_seconds"] + told["chunking_seconds"] + told["checking_seconds"] <= told["seconds"]


def growth(chunker: Chunker, folder: Path, copies: int) -> tuple[int, int, int]:
    """Chunk copies of the samples; give documents, and the most resident memory in KiB in the first half and in all."""
    for number in range(copies):
        for path in SAMPLES.iterdir():
            shutil.copy(path, folder / f"{number:04d}-{path.name}")
    quality = ChunkingQuality(chunker.max_tokens)
    total = copies * len(list(SAMPLES.iterdir()))
    settled = 0
    for done, outcome in enumerate(iter_chunks([folder], chunker), start=1):
        assert not isinstance(outcome, DocumentFailure), outcome
        assert isinstance(outcome, DocumentChunks)
        quality.add(outcome.document, outcome.chunks)
        if done == total // 2:
            settled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return quality.documents, settled, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.requirement("isolation 1.4")
@pytest.mark.parametrize("copies", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_a_thousand_documents_take_no_more_memory_than_half_of_them(
    copies: int, clinical: Chunker, tmp_path: Path
) -> None:
    documents, settled, peak = growth(clinical, tmp_path, copies)
    assert documents == copies * 10
    # What the garbage collector has not come to yet is in the first half too; 32 KiB kept of each document would show.
    assert peak - settled < 16 * 1024, f"grew by {(peak - settled) / 1024:.0f} MiB"
