"""Small calls that share a request, against a real gpu-server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from medkg.local import LocalServer

pytestmark = pytest.mark.requirement("isolation 13.1")

TEXTS = [f"Dose {number} mg was given." for number in range(64)]
TOGETHER = medkg.CoalesceConfig(max_wait=0.2, max_texts=64)


@pytest.fixture(scope="module")
def expected(server: LocalServer) -> np.ndarray:
    with medkg.EmbeddingClient(address=server.address, tenant="plain", timeout=60) as plain:
        return plain.embed(TEXTS).vectors


def test_threads_get_their_own_rows(server: LocalServer, expected: np.ndarray) -> None:
    with (
        medkg.EmbeddingClient(address=server.address, tenant="a", timeout=60, coalesce=TOGETHER) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        results = list(threads.map(lambda text: client.embed([text]), TEXTS))
    for result, row in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.vectors, row[None], atol=1e-5)
        assert result.usage.tokens == result.token_counts.sum()
    assert len({result.request_id for result in results}) == 64


def test_tasks_share_a_request_and_a_wrong_text_is_one_call_alone(server: LocalServer, expected: np.ndarray) -> None:
    async def run() -> list[medkg.EmbeddingResult | BaseException]:
        async with medkg.AsyncEmbeddingClient(
            address=server.address, tenant="b", timeout=60, coalesce=TOGETHER
        ) as client:
            calls = [client.embed([text]) for text in TEXTS[:20]]
            left = asyncio.ensure_future(client.embed(["somebody who leaves"]))
            asyncio.get_running_loop().call_later(0.05, left.cancel)
            return await asyncio.gather(*calls, client.embed(["well", ""]), left, return_exceptions=True)

    *results, wrong, left = asyncio.run(run())
    for result, row in zip(results, expected[:20], strict=True):
        assert isinstance(result, medkg.EmbeddingResult), result
        np.testing.assert_allclose(result.vectors, row[None], atol=1e-5)
    assert isinstance(wrong, medkg.EmbeddingValidationError)
    assert [field for field, _ in wrong.field_violations] == ["texts[1]"]
    assert isinstance(left, asyncio.CancelledError)


def test_what_is_cached_is_not_sent(server: LocalServer, expected: np.ndarray) -> None:
    cache = medkg.CacheConfig(memory_bytes=2**20 + 17)
    with (
        medkg.EmbeddingClient(address=server.address, tenant="c", timeout=60, coalesce=TOGETHER, cache=cache) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        client.embed(TEXTS[:4])
        results = list(threads.map(lambda text: client.embed([text]), TEXTS[:8]))
    assert [result.usage.cache_hits for result in results] == [1] * 4 + [0] * 4
    np.testing.assert_allclose(np.vstack([result.vectors for result in results]), expected[:8], atol=1e-5)
