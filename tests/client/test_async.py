"""The awaitable clients: the same answers, cancellation that reaches the wire, and processes that end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

TEXTS = [f"Patient {i} was given aspirin." for i in range(40)]


def test_the_answers_are_those_of_the_blocking_client(server: LocalServer) -> None:
    config = medkg.ClientConfig(address=server.address, tenant="async", max_batch_texts=16)
    blocking = medkg.connect(config)

    async def work() -> None:
        async with medkg.connect_async(config) as services:
            first, second, models, status = await asyncio.gather(
                services.embedding.embed(TEXTS),
                services.embedding.embed(TEXTS[:1], dtype="float16"),
                services.embedding.models(),
                services.gpu.status(),
            )
            np.testing.assert_allclose(first.vectors, blocking.embedding.embed(TEXTS).vectors, atol=1e-5)
            assert second.vectors.dtype == np.float16
            assert models == blocking.embedding.models()
            assert status.state == "ready"
            with pytest.raises(medkg.EmbeddingValidationError, match=r"texts\[17\]"):
                await services.embedding.embed([*TEXTS[:17], ""])

    asyncio.run(work())


def test_progress_is_told_on_the_event_loop(server: LocalServer) -> None:
    async def work() -> list[tuple[int, int]]:
        client = medkg.AsyncEmbeddingClient(address=server.address, tenant="async", max_batch_texts=10)
        told: list[tuple[int, int]] = []

        def progress(done: int, total: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            assert asyncio.get_running_loop()
            told.append((done, total))

        await client.embed(TEXTS, progress=progress)
        await asyncio.sleep(0)
        return told

    told = asyncio.run(work())
    assert told == sorted(told)
    assert {total for _, total in told} == {40}


def test_what_progress_raises_ends_the_call(server: LocalServer) -> None:
    class EnoughError(Exception):
        pass

    def progress(done: int, total: int) -> None:
        raise EnoughError

    async def work() -> None:
        client = medkg.AsyncEmbeddingClient(address=server.address, tenant="async", max_batch_texts=4)
        with pytest.raises(EnoughError):
            await client.embed(TEXTS, progress=progress)

    asyncio.run(work())


def test_cancelling_the_task_ends_the_call(silent: str) -> None:
    async def work() -> None:
        client = medkg.AsyncGpuClient(address=silent, tenant="async", timeout=3600)
        task = asyncio.create_task(client.status())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.status(), 0.1)

    asyncio.run(asyncio.wait_for(work(), 30))


def test_the_loop_runs_on_while_a_call_waits(silent: str) -> None:
    async def work() -> int:
        client = medkg.AsyncGpuClient(address=silent, tenant="async")
        task = asyncio.create_task(client.status(timeout=0.5))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(medkg.ServiceTimeoutError):
            await task
        return turns

    assert asyncio.run(work()) > 100


def test_a_process_that_ends_with_calls_under_way_ends_quietly(script: Callable[..., Any], silent: str) -> None:
    for _ in range(5):
        done = script(
            """
            import asyncio, sys, medkg
            async def main():
                client = medkg.AsyncGpuClient(address=sys.argv[1], tenant="async", timeout=0.25)
                tasks = [asyncio.create_task(client.status()) for _ in range(50)]
                await asyncio.sleep(0.2)
                for task in tasks[:25]:
                    task.cancel()
                print("leaving", flush=True)
            asyncio.run(main())
            """,
            silent,
        ).finish(limit=20.0)
        assert (done.status, done.out, done.err) == (0, "leaving\n", "")
