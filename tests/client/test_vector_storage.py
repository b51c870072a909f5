"""Collections whose vectors are kept in half precision on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def storing(start_server: Callable[..., LocalServer], data: Path) -> LocalServer:
    return start_server(services=("vector",), embedding_models={}, reranking_models={}, data_dir=data)


@pytest.mark.parametrize(("storage", "error"), [("f16", 2e-3), ("bf16", 2e-2)])
def test_half_the_memory_and_nearly_the_same_scores(storing: LocalServer, storage: Any, error: float) -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((2_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"{row:04}" for row in range(len(vectors))]
    with medkg.connect(address=storing.address, tenant=f"half-{storage}") as services:
        for name, kept in (("whole", "f32"), ("half", storage)):
            made: Any = services.vector.create_collection(name, 64, "dot", storage=kept)
            assert made.storage == kept
            services.vector.upsert(name, ids, vectors)
        whole, half = (services.vector.statistics(name) for name in ("whole", "half"))
        assert (half.storage, 2 * half.device_bytes) == (storage, whole.device_bytes)
        exact = vectors[:8].astype(np.float64) @ vectors.astype(np.float64).T
        for query, hits in enumerate(services.vector.search("half", vectors[:8], 10, with_payload=False)):
            assert hits[0].id == ids[query]
            for hit in hits:
                assert abs(hit.score - exact[query, int(hit.id)]) < error
        read = services.vector.fetch("half", ids[:5]).vectors
        assert read is not None
        np.testing.assert_array_equal(read, vectors[:5])
        with pytest.raises(medkg.AlreadyExistsError, match="storage"):
            services.vector.create_collection("half", 64, "dot", exist_ok=True)


def test_what_half_precision_cannot_hold_is_refused_by_index(storing: LocalServer) -> None:
    with medkg.connect(address=storing.address, tenant="large") as services:
        services.vector.create_collection("c", 2, "dot", storage="f16")
        with pytest.raises(medkg.VectorValidationError, match=r"vectors\[1\].*f16"):
            services.vector.upsert("c", ["a", "b"], np.array([[1, 2], [3, 70_000]], dtype=np.float32))
        assert services.vector.count("c") == 0
        wrong: Any = "int8"
        with pytest.raises(medkg.VectorValidationError, match="storage"):
            services.vector.create_collection("d", 2, storage=wrong)
