"""The reference, asked over files, and texts of every length."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def in_reference_interpreter(script: str, *arguments: Path) -> None:
    """Runs a script of this folder in the interpreter that has torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkg"
    python = os.environ.get("MEDKG_REFERENCE_PYTHON") or str(cache / "reference-2.13.0" / "bin" / "python")
    if not Path(python).exists():
        pytest.fail(f"{python} is not there: run `ops/dev/setup.sh reference`, or set MEDKG_REFERENCE_PYTHON")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("PYTHONPATH", None)
    command = [python, HERE / script, *arguments]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-4000:]


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each row with the other's, in f64."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return (found * wanted).sum(axis=1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, np.ndarray]]:
    """Asks tests/fidelity/reference.py."""

    def run(**request: Any) -> dict[str, np.ndarray]:
        folder = tmp_path_factory.mktemp("reference")
        question, answer = folder / "request.json", folder / "answer.npz"
        question.write_text(json.dumps(request, default=str))
        in_reference_interpreter("reference.py", question, answer)
        with np.load(answer) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return run


@pytest.fixture(scope="session")
def services(server: LocalServer) -> Iterator[medkg.Services]:
    """medkg's clients on the shared server."""
    with medkg.connect(address=server.address, tenant="fidelity", timeout=600) as connected:
        yield connected


@pytest.fixture(scope="session")
def passages() -> list[str]:
    """Real prose: SciFact's abstracts where they are, else the repository's own documents."""
    corpus = ROOT.parent / "shared" / "data" / "scifact" / "corpus.jsonl.gz"
    if corpus.exists():
        with gzip.open(corpus, "rt") as lines:
            records = [json.loads(line) for line in lines]
        return [f"{record['title']} {record['text']}" for record in records]
    documents = sorted((ROOT / "examples" / "documents").glob("*.md"))
    return [block for path in documents for block in path.read_text().split("\n\n") if len(block) > 40]


@pytest.fixture(scope="session")
def texts_of_every_length(passages: list[str]) -> list[str]:
    """From one token to far over the limit, then real passages, then odd ones."""
    words = " ".join(passages[:40]).split()
    lengths = [*range(1, 24), 31, 47, 64, 90, 127, 128, 129, 180, 220, 240, 250, 253, 254, 255, 256, 300, 600]
    cut = [" ".join(words[at : at + length]) for at, length in enumerate(lengths)]
    odd = ["β2-agonist μg/kg ≥ 3", "naïve Ärzte", "医学 文献", "COVID-19 (SARS-CoV-2)!!!", "x" * 300, "\U0001f48a pill"]
    return [*cut, *random.Random(5).sample(passages, min(24, len(passages))), *odd]
