"""Redis over TLS, as production has it: the cache and the registry, with an authority that the system does not know."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from tests.server.authority import Authority
from tests.server.operators import eventually
from tests.services import Redis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

pytestmark = pytest.mark.requirement("isolation 13.4")

SIZES = itertools.count(2**22)
"""Settings of their own: caches of equal settings are one cache."""
TEXTS = ["Aspirin inhibits platelet aggregation.", "Warfarin needs monitoring."]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "hospital")


@pytest.fixture(scope="module")
def secure(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"), authority.server())
    server.start()
    yield server
    server.stop()


def stats(client: medkg.EmbeddingClient) -> medkg.CacheStats:
    told = client.cache_stats()
    assert told is not None
    return told


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))


@pytest.mark.usefixtures("trusted")
def test_what_one_client_embeds_another_one_finds(server: LocalServer, secure: Redis) -> None:
    def embedded() -> tuple[np.ndarray, medkg.CacheStats]:
        """By a client of its own: what it asks for while it connects to Redis is neither read nor written there."""
        cache = medkg.CacheConfig(memory_bytes=next(SIZES), redis=secure.url)
        with medkg.EmbeddingClient(address=server.address, tenant="tls", timeout=60, cache=cache) as client:
            client.embed(["connects"])
            return client.embed(TEXTS).vectors, stats(client)

    first, told = embedded()
    eventually(lambda: embedded()[1].remote_hits == len(TEXTS))
    found, told_later = embedded()
    np.testing.assert_array_equal(found, first)
    assert (told.corrupt, told_later.corrupt) == (0, 0)


@pytest.mark.usefixtures("trusted")
def test_servers_are_registered_and_found(
    start_server: Callable[..., LocalServer], minilm_dir: Path, secure: Redis
) -> None:
    named = ("--registry", secure.url, "--advertise", "http://127.0.0.1:0")
    settings: dict[str, Any] = {"services": ("embedding", "gpu"), "embedding_models": {"minilm": minilm_dir}}
    serving = start_server(**settings, arguments=(*named, "--registry-cluster", "tls"))
    registry = medkg.RegistryConfig(redis=secure.url, cluster="tls")
    registered = medkg.ServiceRegistry(registry=registry)
    eventually(lambda: [found.address for found in registered.servers()] == [serving.address])
    with medkg.EmbeddingClient(registry=registry, tenant="tls", timeout=60) as client:
        assert client.embed(TEXTS).vectors.shape[0] == len(TEXTS)


def test_an_authority_that_is_not_known_is_named_and_costs_no_call(
    server: LocalServer, secure: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    cache = medkg.CacheConfig(memory_bytes=next(SIZES), redis=secure.url)
    with (
        caplog.at_level(logging.WARNING, "medkg.client"),
        medkg.EmbeddingClient(address=server.address, tenant="tls", timeout=60, cache=cache) as client,
    ):
        eventually(lambda: len(client.embed(TEXTS).vectors) and "UnknownIssuer" in caplog.text)
    config = medkg.ClientConfig(registry=medkg.RegistryConfig(redis=secure.url))
    with pytest.raises(medkg.ServiceUnavailableError, match="UnknownIssuer"):
        medkg.ServiceRegistry(config).servers()
