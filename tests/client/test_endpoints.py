"""What a client tells of its servers, and breakers that are closed by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

ONLY_GPU = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None}
COOLDOWN = 600.0


@pytest.mark.requirement("isolation 2.2")
def test_a_breaker_tells_its_history_and_is_closed_by_hand(start_server: Callable[..., LocalServer]) -> None:
    server = start_server(**ONLY_GPU)
    port = int(server.address.rpartition(":")[2])
    options = {"tenant": "a", "timeout": 10, "max_attempts": 1, "breaker_failures": 2, "breaker_cooldown": COOLDOWN}
    with medkg.connect(address=server.address, **options) as services:
        services.gpu.status()
        [well] = services.gpu.endpoints()
        assert (well.address, well.breaker, well.retry_after, well.changes) == (server.address, "closed", None, [])
        assert (well.pending, well.last_failure) == (0, None)
        server.kill()
        for _ in range(2):
            with pytest.raises(medkg.ServiceUnavailableError):
                services.gpu.status()
        [dead] = services.gpu.endpoints()
        assert (dead.breaker, [state for _, state in dead.changes]) == ("open", ["open"])
        assert 0 < (dead.retry_after or 0) <= COOLDOWN
        assert dead.last_failure
        # The address is the same for every client of the process that has these settings.
        assert services.embedding.endpoints()[0].breaker == "open"
        start_server(**ONLY_GPU, port=port)
        with pytest.raises(medkg.CircuitOpenError):
            services.gpu.status()
        with pytest.raises(medkg.ValidationError, match=f"has {server.address}"):
            services.gpu.reset_breakers("http://elsewhere:1")
        assert services.embedding.reset_breakers(server.address) == 1
        assert services.gpu.status().state == "ready"
        [again] = services.gpu.endpoints()
        assert [state for _, state in again.changes] == ["open", "closed"]
        assert services.gpu.reset_breakers() == 0


def test_asynchronous_clients_tell_the_same(server: LocalServer) -> None:
    async def told() -> list[medkg.EndpointInfo]:
        async with medkg.AsyncGpuClient(address=server.address, tenant="a") as client:
            assert client.reset_breakers() == 0
            return client.endpoints()

    assert [endpoint.address for endpoint in asyncio.run(told())] == [server.address]
