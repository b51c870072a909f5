"""Many documents in batches: bounded memory, and a process that is killed half-way loses and repeats nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import medkg
from bench.backfill import COLLECTION, Backfill, kill_and_resume, rows

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.local import LocalServer


@pytest.mark.parametrize(
    ("documents", "batches"),
    [
        pytest.param(200, 3, id="200"),
        pytest.param(10_000, 20, id="10000", marks=[pytest.mark.slow, pytest.mark.timeout(14_400)]),
    ],
)
def test_a_backfill_that_is_killed_half_way_ends_with_everything_once(
    tmp_path: Path, server: LocalServer, documents: int, batches: int
) -> None:
    backfill = Backfill(tmp_path, documents, batches)
    outcome = kill_and_resume(backfill, server.address)
    keys = [one["batch"] for one in outcome.batches]
    assert (len(outcome.before), len(keys), keys) == (batches // 2, batches, sorted(set(keys)))
    assert all(one["checks_passed"] for one in outcome.batches)
    assert sum(one["documents"] for one in outcome.batches) == documents

    assert len(outcome.chunk_ids) == len(set(outcome.chunk_ids)) == sum(one["chunks"] for one in outcome.batches)
    assert len(outcome.texts) == len(set(outcome.texts))
    assert len(outcome.kept) > sum(one["texts_embedded"] for one in outcome.before), "killed in the middle of a batch"
    assert outcome.after[0]["chunks_reused"] > 0, "what that batch had embedded is embedded again"
    assert sum(one["texts_embedded"] for one in outcome.after) == len(outcome.texts) - len(outcome.kept)
    with medkg.connect(address=server.address, tenant=backfill.tenant) as services:
        points = services.vector.statistics(COLLECTION).points
    assert points == len(outcome.chunk_ids)
    # Each process has its own peak; what a batch costs for good would add up in it.
    assert {one.name: one.holds for one in rows(outcome, documents=documents, points=points) if not one.holds} == {
        one.name: None for one in rows(outcome, documents=documents, points=points) if one.bar is None
    }
