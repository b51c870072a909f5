"""Real checkpoints on real text: all-mpnet-base-v2 and splade-tiny, which `ops/dev/setup.sh models-more` fetches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

from .conftest import cosines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

CACHE = Path(
    os.environ.get("MEDKG_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkg"
)
pytestmark = pytest.mark.slow


def checkpoint(name: str) -> Path:
    folder = CACHE / "models" / name
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"{folder} is not there: run `ops/dev/setup.sh models-more` to compare with {name}")
    return folder


@pytest.fixture(scope="module")
def mpnet() -> Path:
    return checkpoint("all-mpnet-base-v2")


@pytest.fixture(scope="module")
def splade() -> Path:
    return checkpoint("splade-tiny")


@pytest.fixture(scope="module")
def real_services(start_server: Callable[..., LocalServer], mpnet: Path, splade: Path) -> Iterator[medkg.Services]:
    server = start_server(
        services=("embedding",), embedding_models={"mpnet": mpnet, "splade": splade}, reranking_models={}
    )
    with medkg.connect(address=server.address, tenant="fidelity", timeout=600) as connected:
        yield connected


def test_mpnet(
    real_services: medkg.Services,
    reference: Callable[..., dict[str, np.ndarray]],
    mpnet: Path,
    texts_of_every_length: list[str],
) -> None:
    # Every third one, for a model of 110 million parameters takes its time; and one over the limit.
    texts = [*texts_of_every_length[::3], " ".join(texts_of_every_length[:32])]
    wanted = reference(embedding_model=mpnet, texts=texts)["vectors"]
    together = real_services.embedding.embed(texts, model="mpnet")
    assert int(together.token_counts.max()) == 384
    alone = np.concatenate([real_services.embedding.embed([text], model="mpnet").vectors for text in texts[:8]])
    assert cosines(together.vectors, wanted).min() >= 0.99999
    assert cosines(alone, wanted[:8]).min() >= 0.99999


def test_splade(
    real_services: medkg.Services,
    reference: Callable[..., dict[str, np.ndarray]],
    splade: Path,
    texts_of_every_length: list[str],
) -> None:
    wanted = reference(sparse_model=splade, texts=texts_of_every_length)["rows"]
    answer = real_services.embedding.embed_sparse(texts_of_every_length, model="splade")
    found = np.zeros_like(wanted)
    for index, row in enumerate(found):
        places, weights = answer.row(index)
        row[places] = weights
    assert int(answer.token_counts.max()) == 512
    assert cosines(found, wanted).min() >= 0.99999
    assert np.abs(found - wanted).max() <= 1e-4 * float(wanted.max())
    assert np.median((wanted > 0).sum(axis=1)) < 2_000
