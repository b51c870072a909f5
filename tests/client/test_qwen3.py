"""`embed_texts` for callers of an older, in-process Qwen3 service, against a real Qwen3 (tiny, with random weights)."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg
from tests.server.checkpoints import write_qwen3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

TEXTS = ["Aspirin inhibits platelet aggregation.", "Metformin lowers blood glucose.", "ASS hemmt Thrombozyten."]
MODEL = "qwen3-embedding"


@pytest.fixture(scope="module")
def qwen3(
    start_server: Callable[..., LocalServer], minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A gpu-server whose default model is MiniLM and whose other one is a Qwen3."""
    models = {"minilm": minilm_dir, MODEL: write_qwen3(tmp_path_factory.mktemp("qwen3"), minilm_dir, seed=1).folder}
    server = start_server(services=("embedding",), embedding_models=models, reranking_models={}, data_dir=None)
    yield server
    server.stop()


@pytest.mark.requirement("observability 3.1")
@pytest.mark.requirement("observability 3.2")
def test_texts_become_lists_of_floats_of_the_named_model(qwen3: LocalServer) -> None:
    with medkg.Qwen3GRPCClient(address=qwen3.address, tenant="a", timeout=60, model=MODEL) as client:
        lists = client.embed_texts(TEXTS)
        arrays = client.embedding.embed(TEXTS, model=MODEL)
        assert [model.architecture for model in client.embedding.models() if model.name == MODEL] == ["qwen3"]
        assert (type(lists), type(lists[0]), type(lists[0][0])) == (list, list, float)
        np.testing.assert_array_equal(np.array(lists, dtype=np.float32), arrays.vectors)
        assert client.embed_texts([]) == []
        with pytest.raises(medkg.EmbeddingValidationError) as wrong:
            client.embed_texts(["well", ""], tenant="b")
        assert ([field for field, _ in wrong.value.field_violations], wrong.value.tenant) == (["texts[1]"], "b")
        twin = pickle.loads(pickle.dumps(client))  # noqa: S301 - our own
        assert (twin.model, twin.embedding.config, repr(twin)) == (MODEL, client.embedding.config, repr(client))
        assert twin.embed_texts(TEXTS) == lists
    with medkg.Qwen3GRPCClient(address=qwen3.address, tenant="a", timeout=60) as default:
        assert len(default.embed_texts(TEXTS[:1])[0]) == 384
    with (
        medkg.Qwen3GRPCClient(address=qwen3.address, tenant="a", model="none-of-these") as other,
        pytest.raises(medkg.ModelNotFoundError, match="none-of-these"),
    ):
        other.embed_texts(TEXTS)


def test_health_asks_the_server_for_the_model(qwen3: LocalServer, refusing: str) -> None:
    for model, healthy in ((MODEL, True), (None, True), ("none-of-these", False)):
        with medkg.Qwen3GRPCClient(address=qwen3.address, tenant="a", model=model) as client:
            assert client.health_check() is healthy
    with (
        medkg.Qwen3GRPCClient(address=refusing, tenant="a", max_attempts=1) as unreachable,
        pytest.raises(medkg.ServiceUnavailableError),
    ):
        unreachable.health_check()


@pytest.mark.requirement("observability 3.1")
def test_without_a_gpu_nothing_falls_back(start_server: Callable[..., LocalServer], minilm_dir: Path) -> None:
    server = start_server(
        services=("embedding",),
        embedding_models={MODEL: minilm_dir},
        reranking_models={},
        data_dir=None,
        device="cuda",
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    with medkg.Qwen3GRPCClient(address=server.address, tenant="a", model=MODEL) as client:
        for call in (client.health_check, lambda: client.embed_texts(TEXTS)):
            with pytest.raises(medkg.GpuNotAvailableError) as absent:
                call()
            assert (absent.value.attempts, absent.value.breaker_state) == (1, "closed")
    server.stop()


def test_what_a_caller_may_rely_on_is_an_interface() -> None:
    with medkg.EmbeddingClient(tenant="a") as real:
        assert isinstance(real, medkg.GPUEmbeddingClient)
    with medkg.RerankingClient(tenant="a") as other:
        assert not isinstance(other, medkg.GPUEmbeddingClient)
    interface: medkg.GPUEmbeddingClient = medkg.Qwen3GRPCClient(tenant="a").embedding
    assert json.dumps([endpoint.breaker for endpoint in interface.endpoints()]) == '["closed"]'
