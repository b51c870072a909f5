"""The vectors suite, small: what it measures is measured on a real server, and a peer that is not there is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import sparse, vectors

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_all_is_measured_but_what_needs_a_peer_that_is_not_there(
    gpu_server_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDKG_PEERS_PYTHON", str(tmp_path / "no-python"))
    for name, value in {"POINTS": 3_000, "CALL": 1_000, "SINGLE": 4, "BATCHED": 64, "FILTERED": 2}.items():
        monkeypatch.setattr(vectors, name, value)
    for name, value in {"POINTS": 3_000, "CALL": 1_000}.items():
        monkeypatch.setattr(sparse, name, value)
    rows, versions = vectors.measure(gpu_server_binary, rounds=1, folder=tmp_path / "bench", say=lambda _: None)
    by_name = {row.name: row for row in rows}
    assert versions == {}
    for name in vectors.NAMES.values():
        assert by_name[name].holds is None
        assert "make bench" in by_name[name].note
    for name in (vectors.UPSERT, vectors.FILTER, vectors.FAST, *sparse.NAMES.values()):
        assert (by_name[name].value or 0) > 0
    # Capacity grows by doubling in both, so the ratio is that of the element types.
    assert by_name[vectors.HALF].value == 0.5
