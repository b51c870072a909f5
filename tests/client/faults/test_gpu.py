"""A GPU that is lost on one of three servers: whoever works there hears of it, and nobody's work is done elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import pytest

import medkg
from medkg.local import LocalServer
from tests.server.played import PlayedGpu

from .load import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Member

LONG = ["word " * 60] * 500


@pytest.mark.requirement("isolation 5.4")
@pytest.mark.requirement("observability 3.1")
@pytest.mark.fault(
    "GPU",
    "one of three servers loses its GPU under load",
    "its calls fail at once with GpuLostError: not retried, not rerouted, no breaker opens; the others answer theirs",
)
def test_one_of_three_loses_its_gpu(
    fleet: Callable[..., list[Member]],
    tmp_path: Path,
    seen: Callable[[str], None],
) -> None:
    played = PlayedGpu(tmp_path)
    others = fleet(2, "--batch-tokens", "512", alike=True)
    lost = LocalServer(
        played.binary,
        device="cuda",
        services=("embedding",),
        embedding_models={"tiny": tmp_path / "model-0"},
        threads=1,
        log_path=tmp_path / "lost.jsonl",
        arguments=("--dtype", "f32", "--batch-tokens", "512", "--gpu-lost-grace", "2"),
    )
    addresses = [*(other.server.address for other in others), lost.start().address]

    async def run() -> list[BaseException]:
        async with medkg.AsyncEmbeddingClient(addresses=addresses, tenant="a", timeout=120) as client:

            def there() -> medkg.EndpointInfo:
                return next(endpoint for endpoint in client.endpoints() if endpoint.address == lost.address)

            async def keep_busy(caller: int) -> None:
                for turn in itertools.count():
                    await client.embed(LONG, request_id=f"long-{caller}-{turn}")

            # More callers than servers, none of which ever stops: whenever it is that the GPU is lost, calls are there.
            callers = [asyncio.ensure_future(keep_busy(caller)) for caller in range(9)]
            deadline = time.monotonic() + 60
            while not there().pending:
                assert time.monotonic() < deadline, "it gets no calls"
                await asyncio.sleep(0.05)
            played.xid(79)
            await asyncio.wait(callers, return_when=asyncio.FIRST_EXCEPTION, timeout=60)
            assert there().breaker == "closed"
            for caller in callers:
                caller.cancel()
            ends = await asyncio.gather(*callers, return_exceptions=True)
            errors = [end for end in ends if isinstance(end, medkg.MedkgError)]
            # Until the server has ended, or is known to have no GPU, it may get calls; they fail in the same way.
            answered = 0
            while answered < 20:
                assert time.monotonic() < deadline, errors
                try:
                    await client.embed(TEXT)
                    answered += 1
                except medkg.GpuLostError as error:
                    errors.append(error)
                    answered = 0
            return errors

    try:
        errors = asyncio.run(run())
        assert errors
        for error in errors:
            assert isinstance(error, medkg.GpuLostError), error
            told = (error.endpoint, error.code, error.attempts, error.retryable, error.breaker_state)
            assert told == (lost.address, "FAILED_PRECONDITION", 1, False, "closed")
            assert "Xid 79" in str(error)
    finally:
        lost.kill()
    seen("GpuLostError, one attempt, breaker closed; the others answer")
