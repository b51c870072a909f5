"""`--dtype auto`, the default: bf16 where the CPU is faster with it and the model's answers stay those of f32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg
from medkg.local import LocalServer

from .checkpoints import write_bert

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = ["aspirin", "warfarin or heparin", "a trial of statins in heart failure " * 5]


def faster_in_bf16() -> bool:
    """What the CPU says of itself: the conditions of the guide's section on element types."""
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


@pytest.fixture(scope="module")
def touchy(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A model that bf16 ruins: its words are 1000 above, its positions 1000 below what they say."""
    folder = write_bert(tmp_path_factory.mktemp("models") / "touchy", minilm_dir, seed=5).folder
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for name, shift in (("word", 1000.0), ("position", -1000.0)):
        first, last = (start + place for place in header[f"embeddings.{name}_embeddings.weight"]["data_offsets"])
        raw[first:last] = (np.frombuffer(raw[first:last], "<f4") + np.float32(shift)).tobytes()
    weights.write_bytes(raw)
    return folder


def test_auto_takes_bf16_where_it_is_faster_and_does_no_harm(
    start_server: Callable[..., LocalServer], minilm_dir: Path, reranker_dir: Path, touchy: Path
) -> None:
    server = start_server(
        services=("embedding", "reranking"),
        embedding_models={"minilm": minilm_dir, "touchy": touchy},
        reranking_models={"reranker": reranker_dir},
        data_dir=None,
        arguments=("--dtype", "auto"),
    )
    with medkg.connect(address=server.address, tenant="a", timeout=60) as services:
        types = {model.name: model.compute_dtype for model in services.embedding.models()}
        types |= {model.name: model.compute_dtype for model in services.reranking.models()}
        found = services.embedding.embed(TEXTS, model="touchy").vectors
    expected = "bfloat16" if faster_in_bf16() else "float32"
    assert types == {"minilm": expected, "touchy": "float32", "reranker": expected}
    said = [line for line in server.events() if "computes in f32" in str(line.get("message"))]
    assert [line["model"] for line in said] == (["touchy"] if faster_in_bf16() else [])
    assert all("cosine" in str(line["difference"]) for line in said)
    server.stop()

    def computed_in(dtype: str) -> np.ndarray:
        other = start_server(
            services=("embedding",),
            embedding_models={"touchy": touchy},
            reranking_models={},
            data_dir=None,
            arguments=("--dtype", dtype),
        )
        with medkg.connect(address=other.address, tenant="a", timeout=60) as services:
            vectors = services.embedding.embed(TEXTS).vectors
        other.stop()
        return np.asarray(vectors)

    assert np.array_equal(found, computed_in("f32"))
    assert cosine(found, computed_in("bf16")) < 0.99, "bf16 does no harm to this model, so nothing was shown"


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The least of the rows' cosines."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / lengths).min())


def test_auto_is_the_default(gpu_server_binary: Path, minilm_dir: Path, tmp_path: Path) -> None:
    with (
        LocalServer(
            gpu_server_binary,
            services=("embedding",),
            embedding_models={"minilm": minilm_dir},
            log_path=tmp_path / "log.jsonl",
        ) as server,
        medkg.connect(address=server.address, tenant="a", timeout=60) as services,
    ):
        (model,) = services.embedding.models()
    assert model.compute_dtype == ("bfloat16" if faster_in_bf16() else "float32")
