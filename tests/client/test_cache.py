"""The cache of embeddings: a real gpu-server, a real Redis, and what goes wrong with it."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from tests.server.checkpoints import write_bert
from tests.server.operators import eventually
from tests.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

pytestmark = pytest.mark.requirement("isolation 13.4")

TEXTS = [f"Dose {number} mg of the drug was given to the patient." for number in range(300)]
SIZES = itertools.count(2**24)
"""Settings of their own: caches of equal settings are one cache."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def caching(server: LocalServer) -> Iterator[Callable[..., medkg.EmbeddingClient]]:
    """Makes clients with a cache that no other one shares."""
    made: list[medkg.EmbeddingClient] = []

    def make(tenant: str = "cache", redis: Redis | None = None, **options: Any) -> medkg.EmbeddingClient:
        cache = medkg.CacheConfig(memory_bytes=next(SIZES), redis=redis.url if redis else None)
        options = {"address": server.address, "tenant": tenant, "timeout": 60, "cache": cache, **options}
        made.append(medkg.EmbeddingClient(**options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def expected(server: LocalServer) -> np.ndarray:
    with medkg.EmbeddingClient(address=server.address, tenant="plain", timeout=60) as plain:
        return plain.embed(TEXTS).vectors


def fill(caching: Callable[..., medkg.EmbeddingClient], redis: Redis, tenant: str) -> None:
    """Puts the embeddings of all texts into a Redis that is empty."""
    # What is written while Redis is still being connected to is dropped; after the first entry none is.
    eventually(lambda: caching(tenant, redis).embed(TEXTS[:1]) and redis.call("DBSIZE") == b":1\r\n")
    fills = caching(tenant, redis)
    eventually(lambda: fills.embed(TEXTS[:1]) and redis.call("DBSIZE") == b":1\r\n")
    fills.embed(TEXTS)
    eventually(lambda: redis.call("DBSIZE") == b":300\r\n")


def test_only_what_is_missing_is_computed(caching: Callable[..., medkg.EmbeddingClient], expected: np.ndarray) -> None:
    client = caching()
    told: list[tuple[int, int]] = []
    first = client.embed(TEXTS[:200])
    assert (first.usage.cache_hits, np.abs(first.vectors - expected[:200]).max() < 1e-5) == (0, True)
    again = client.embed([*TEXTS[100:], TEXTS[0], TEXTS[250]], progress=lambda done, of: told.append((done, of)))
    assert again.usage.cache_hits == 102
    assert again.usage.tokens == sum(again.token_counts[100:200])
    np.testing.assert_array_equal(again.vectors[:100], first.vectors[100:])
    np.testing.assert_allclose(again.vectors[100:], np.vstack([expected[200:], expected[[0, 250]]]), atol=1e-5)
    np.testing.assert_array_equal(again.vectors[-1], again.vectors[150])
    assert told[-1] == (202, 202)
    whole = client.embed(TEXTS)
    assert (whole.usage.cache_hits, whole.usage.tokens, whole.usage.calls) == (300, 0, 0)
    assert (whole.model, whole.model_digest) == (first.model, first.model_digest)
    stats = client.cache_stats()
    assert stats is not None
    assert (stats.entries, stats.misses, stats.remote_errors) == (300, 300, 0)
    assert stats.bytes > 300 * 384 * 4


def test_each_setting_has_entries_of_its_own(caching: Callable[..., medkg.EmbeddingClient]) -> None:
    client, text = caching(), TEXTS[:1]
    for how in ({}, {"dtype": "int8"}, {"dtype": "float16"}, {"dimensions": 64}, {"instruction": "query: "}):
        fresh = client.embed(text, **how)
        assert fresh.usage.cache_hits == 0, how
        kept = client.embed(text, **how)
        assert kept.usage.cache_hits == 1, how
        np.testing.assert_array_equal(kept.vectors, fresh.vectors)
        np.testing.assert_array_equal(kept.as_float32(), fresh.as_float32())
        assert (kept.truncated, list(kept.token_counts)) == (fresh.truncated, list(fresh.token_counts))
    assert client.embed(text, tenant="another").usage.cache_hits == 0
    long = ["word " * 2_000]
    assert client.embed(long).truncated == [0]
    assert client.embed(long).truncated == [0]
    with pytest.raises(medkg.EmbeddingValidationError):
        client.embed(long, truncation="refuse")


def test_an_error_names_the_text_as_the_caller_counts(caching: Callable[..., medkg.EmbeddingClient]) -> None:
    client = caching()
    client.embed(TEXTS[:10])
    with pytest.raises(medkg.EmbeddingValidationError) as wrong:
        client.embed([*TEXTS[:10], TEXTS[0], TEXTS[20], ""])
    assert [field for field, _ in wrong.value.field_violations] == ["texts[12]"]


def test_processes_share_through_redis(
    caching: Callable[..., medkg.EmbeddingClient], redis: Redis, expected: np.ndarray
) -> None:
    one, other = caching("shared", redis), caching("shared", redis)
    one.embed(TEXTS)
    eventually(lambda: redis.call("DBSIZE") == b":300\r\n")
    found = other.embed(TEXTS)
    assert (found.usage.cache_hits, found.usage.tokens) == (300, 0)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert caching("stranger", redis).embed(TEXTS[:1]).usage.cache_hits == 0
    # Forgotten by model, then by tenant; other tenants keep theirs.
    assert one.forget_cached("0" * 64) == 0
    assert one.forget_cached(found.model_digest) == 300
    assert one.embed(TEXTS[:5]).usage.cache_hits == 0
    eventually(lambda: redis.call("DBSIZE") == b":6\r\n")
    assert one.forget_cached() == 5
    assert caching("stranger", redis).embed(TEXTS[:1]).usage.cache_hits == 1
    redis.call("FLUSHALL")


@pytest.mark.fault(
    "Redis",
    "the Redis of the cache is down, and comes",
    "no call fails; what is not there is computed; it is used once it answers",
)
def test_redis_that_is_down_fails_no_call(
    caching: Callable[..., medkg.EmbeddingClient], tmp_path: Path, expected: np.ndarray, seen: Callable[[str], None]
) -> None:
    redis = Redis(tmp_path)
    try:
        gone = caching("down", redis)
        np.testing.assert_allclose(gone.embed(TEXTS[:3]).vectors, expected[:3], atol=1e-5)
        assert gone.cache_stats().remote_errors > 0  # type: ignore[union-attr]
        redis.start()
        fill(caching, redis, "down")
        eventually(lambda: caching("down", redis).embed(TEXTS).usage.cache_hits == 300)
        redis.stop()
        stopped = caching("down", redis)
        np.testing.assert_allclose(stopped.embed(TEXTS).vectors, expected, atol=1e-5)
        assert stopped.cache_stats().remote_errors > 0  # type: ignore[union-attr]
    finally:
        redis.stop()
    seen("embeddings are computed; `cache_stats()` counts the errors; found again when Redis is there")


@pytest.mark.fault(
    "Redis",
    "bits of every entry in the cache's Redis are flipped",
    "no entry is used; what is not there is computed",
)
def test_flipped_bits_in_redis_are_found(
    caching: Callable[..., medkg.EmbeddingClient], tmp_path: Path, expected: np.ndarray, seen: Callable[[str], None]
) -> None:
    redis = Redis(tmp_path)
    redis.start()
    try:
        fill(caching, redis, "flipped")
        names = [name for name in redis.call("KEYS", "*").split(b"\r\n") if name.startswith(b"medkg:embedding")]
        for number, name in enumerate(names):
            # One bit each, at another place of the entry.
            bits = 8 * len(redis.call("GET", name.decode()).partition(b"\r\n")[2][:-2])
            place = number * bits // len(names)
            was = redis.call("GETBIT", name.decode(), str(place))
            redis.call("SETBIT", name.decode(), str(place), "0" if was == b":1\r\n" else "1")
        corrupt = caching("flipped", redis)
        found = corrupt.embed(TEXTS)
        assert found.usage.cache_hits == 0
        np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
        assert corrupt.cache_stats().corrupt == 300  # type: ignore[union-attr]
    finally:
        redis.stop()
    seen("300 entries, one bit of each at another place: 300 found corrupt, all computed anew")


@pytest.mark.fault(
    "Redis",
    "the Redis of the cache holds its connections and answers nothing",
    "no call fails; after the first answer that does not come it is left alone for a while; it is used when it answers",
)
def test_redis_that_does_not_answer_fails_no_call(
    caching: Callable[..., medkg.EmbeddingClient], tmp_path: Path, expected: np.ndarray, seen: Callable[[str], None]
) -> None:
    redis = Redis(tmp_path)
    redis.start()
    try:
        fill(caching, redis, "slow")
        slow = caching("slow", redis)
        slow.embed(TEXTS[:1])
        redis.pause()
        found = slow.embed(TEXTS)
        np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
        # After the first answer that did not come it is left alone for a second.
        slow.embed(["one", "two"])
        assert slow.cache_stats().remote_errors == 1  # type: ignore[union-attr]
        redis.resume()
        eventually(lambda: caching("slow", redis).embed(TEXTS).usage.cache_hits == 300)
    finally:
        redis.stop()
    seen("embeddings are computed; one error of two calls; found again when it goes on")


def test_a_text_is_computed_once_for_all_that_ask_at_the_same_time(
    caching: Callable[..., medkg.EmbeddingClient],
) -> None:
    client = caching()
    client.embed(["warm"])
    texts = [f"{number} " + "long text " * 100 for number in range(60)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: client.embed(texts), range(6)))
    counts = results[0].token_counts
    assert sum(result.usage.tokens for result in results) == sum(counts)
    for result in results:
        np.testing.assert_array_equal(result.vectors, results[0].vectors)
    # Whoever waited for a call that failed computes the texts itself.
    bad = [*texts[:1], "fresh text " * 300, ""]
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(client.embed, bad)
        well = pool.submit(client.embed, bad[:2])
        assert well.result(timeout=60).vectors.shape == (2, 384)
        with pytest.raises(medkg.EmbeddingValidationError):
            failing.result(timeout=60)


def test_a_model_that_was_replaced_is_not_mixed_with_the_old_one(
    start_server: Callable[..., LocalServer], minilm_dir: Path, tmp_path: Path
) -> None:
    old, new = (write_bert(tmp_path / name, minilm_dir, seed=seed) for seed, name in enumerate(("old", "new")))
    only = {"services": ("embedding",), "reranking_models": {}, "data_dir": None}
    first = start_server(embedding_models={"m": old.folder}, **only)
    cache = medkg.CacheConfig(memory_bytes=next(SIZES))
    with medkg.EmbeddingClient(address=first.address, tenant="a", timeout=60, cache=cache) as client:
        assert client.embed(TEXTS[:2]).model_digest == old.digest
        first.kill()
        second = start_server(embedding_models={"m": new.folder}, port=int(first.address.rpartition(":")[2]), **only)
        found = client.embed(TEXTS[:3])
        assert (found.model_digest, found.usage.cache_hits) == (new.digest, 0)
        again = client.embed(TEXTS[:3])
        assert (again.model_digest, again.vectors.tolist()) == (new.digest, found.vectors.tolist())
    second.kill()


def test_settings_are_checked_and_travel(server: LocalServer) -> None:
    with pytest.raises(medkg.ConfigError) as wrong:
        medkg.EmbeddingClient(
            address=server.address, cache=medkg.CacheConfig(memory_bytes=0, ttl=-1.0, redis="http://:secret@host")
        )
    assert [field for field, _ in wrong.value.field_violations] == ["cache.memory_bytes", "cache.ttl", "cache.redis"]
    config = medkg.CacheConfig(memory_bytes=next(SIZES), redis="redis://:secret@host:6379")
    assert "secret" not in str(wrong.value) + repr(config)
    assert copy.deepcopy(config) == config
    with medkg.EmbeddingClient(address=server.address, tenant="a") as plain:
        assert (plain.cache_stats(), plain.forget_cached()) == (None, 0)
