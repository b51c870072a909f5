"""Packets that come late, get lost or vanish between the client and real servers (see link.py for how)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.checkpoints import write_bert

from .link import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def in_bad_network(gpu_server_binary: Path, minilm_dir: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a scenario of bad_network.py with so many servers, and gives what it saw."""

    def run(scenario: str, servers: int) -> dict[str, Any]:
        probe = "from tests.client.faults.link import Link; Link()"
        if subprocess.run(
            [*NAMESPACE, sys.executable, "-c", probe], cwd=ROOT, capture_output=True, check=False
        ).returncode:
            pytest.skip("this user may not make network namespaces with a TUN device: run as root")
        models = [write_bert(tmp_path / f"m{seed}", minilm_dir, seed=seed) for seed in range(servers)]
        module = ["-m", "tests.client.faults.bad_network", scenario, str(gpu_server_binary)]
        done = subprocess.run(
            [*NAMESPACE, sys.executable, *module, *(str(model.folder) for model in models)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


@pytest.mark.fault(
    "Network",
    "each packet takes 200 ms ± 100, and 5 % are lost",
    "every call is answered",
)
def test_packets_are_late_and_lost(in_bad_network: Callable[..., dict[str, Any]], seen: Callable[[str], None]) -> None:
    result = in_bad_network("late_and_lossy", 2)
    assert result["errors"] == []
    assert result["lost"] > 0
    assert result["quickest"] >= 0.2, "the packets were not late"
    seen("24 callers, more than 100 calls; no call failed")


@pytest.mark.fault(
    "Network",
    "packets to one of three servers vanish from the start",
    "no call fails; `endpoints()` tells of it; it takes calls once they come through",
)
def test_packets_vanish_from_the_start(
    in_bad_network: Callable[..., dict[str, Any]], seen: Callable[[str], None]
) -> None:
    result = in_bad_network("swallowed_from_the_start", 3)
    assert result["errors"] == []
    assert (result["meanwhile"], result["lost"] > 0) == (2, True)
    assert "connect" in result["told"]
    seen("no call failed; the other two answered; all three do afterwards")


@pytest.mark.fault(
    "Network",
    "packets to one of three servers vanish under load, its connection standing",
    "a question for its health finds out; calls that wait there are made elsewhere; none fails",
)
def test_packets_vanish_under_load(in_bad_network: Callable[..., dict[str, Any]], seen: Callable[[str], None]) -> None:
    result = in_bad_network("swallowed_under_load", 3)
    assert result["errors"] == []
    assert result["lost"] > 0
    limit = "10 s at most" if result["longest"] <= 10 else "more than 10 s"
    seen(f"no call failed; calls waited for {limit}; all three answer again")
