"""Clients whose calls are dropped, and clients and servers that are told to end, in the middle of calls."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import medkg

from .load import TEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.conftest import Script

    from .conftest import Member

DROPPED = 10_000


def held(pid: int) -> tuple[int, int]:
    """Files and threads of a process."""
    files, threads = (sum(1 for _ in Path(f"/proc/{pid}/{kind}").iterdir()) for kind in ("fd", "task"))
    return files, threads


@pytest.mark.fault(
    "Processes",
    "10,000 calls are dropped by their callers, at any moment of their lives",
    "nothing is left of them on either side: no file, no thread, no call; no other call fails",
)
def test_calls_are_dropped(fleet: Callable[..., list[Member]], seen: Callable[[str], None]) -> None:
    [member] = fleet(1)
    dice = random.Random(5)

    async def run() -> int:
        async with medkg.AsyncEmbeddingClient(address=member.server.address, tenant="a", timeout=60) as client:
            await client.embed(TEXT)
            before = {process: held(process) for process in (os.getpid(), member.server.pid)}
            slots = asyncio.Semaphore(200)
            finished = 0

            async def drop() -> None:
                nonlocal finished
                async with slots:
                    call = asyncio.ensure_future(client.embed(TEXT))
                    await asyncio.sleep(dice.choice([0, 0, 0.001, 0.01, 0.05]))
                    call.cancel()
                    try:
                        await call
                        finished += 1
                    except asyncio.CancelledError:
                        pass

            await asyncio.gather(*(drop() for _ in range(DROPPED)))
            # The server is not busy with what nobody waits for, and the client is not waiting for it.
            assert (await client.embed(TEXT, timeout=30)).vectors.shape == (1, 32)
            deadline = time.monotonic() + 60
            while client.endpoints()[0].pending:
                assert time.monotonic() < deadline, client.endpoints()
                await asyncio.sleep(0.01)
            [endpoint] = client.endpoints()
            assert (endpoint.breaker, endpoint.changes, endpoint.last_failure) == ("closed", [], None)
            # A few more connections stay, and threads that handed answers over end when they have been idle.
            while any(
                now > then + 10
                for process, held_then in before.items()
                for now, then in zip(held(process), held_then, strict=True)
            ):
                assert time.monotonic() < deadline, "files or threads are left"
                await asyncio.sleep(0.05)
            return finished

    assert asyncio.run(run()) < DROPPED / 2, "most calls ended before they were dropped"
    seen("10,000 tasks of asyncio cancelled; the next call was answered; breaker closed, nothing pending")


WORKING = """
    import os, signal, sys, threading, medkg
    client = medkg.EmbeddingClient(address=sys.argv[1], tenant="demo", timeout=3600)
    begun = threading.Barrier(5)
    def work():
        client.embed(["ready?"])
        begun.wait()
        while True:
            client.embed(["word " * 60] * 2000)
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    begun.wait()
    {handler}
    print("working", flush=True)
    client.embed(["word " * 60] * 2_000_000)
"""


@pytest.mark.fault(
    "Processes",
    "a client is told to end while calls run (SIGTERM), with a handler of Python and without one",
    "it ends as any process does; the server computes its calls no longer and serves others",
)
def test_a_client_is_told_to_end(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    script: Callable[..., Script],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    handlers = {"pass": -signal.SIGTERM, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))": 3}
    for handler, status in handlers.items():
        running = script(WORKING.format(handler=handler), member.server.address)
        assert running.line() == "working"
        time.sleep(0.2)  # into the last call; a signal before it would prove less, but fail nothing
        running.process.send_signal(signal.SIGTERM)
        done = running.finish(limit=30)
        assert (done.status, done.err) == (status, "")
        assert client([member.server.address]).embed(TEXT, timeout=20).vectors.shape == (1, 32)
    seen("exit status -15 without a handler, the handler's with one; nothing on standard error; others are served")


@pytest.mark.fault(
    "Processes",
    "a server is told to end while calls run (SIGTERM)",
    "it answers those and takes no others; it exits with 0",
)
def test_a_server_is_told_to_end(
    fleet: Callable[..., list[Member]],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    texts = ["word " * 60] * 128

    async def run() -> list[Any]:
        async with medkg.AsyncEmbeddingClient(
            address=member.server.address, tenant="a", timeout=60, max_attempts=1
        ) as client:
            calls = [asyncio.ensure_future(client.embed(texts)) for _ in range(16)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            stopping = asyncio.to_thread(member.server.stop)
            answers = await asyncio.gather(stopping, *calls)
            with pytest.raises(medkg.ServiceUnavailableError):
                await client.embed(TEXT)
            return answers

    status, *answers = asyncio.run(run())
    assert status == 0
    assert [answer.vectors.shape for answer in answers] == [(128, 32)] * 16
    seen("16 calls, the first answered before the signal, all answered without retries; exit status 0")
