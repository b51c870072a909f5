"""One tenant's latency while another one floods the server, over its latency alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import medkg
from bench.measure import CandidateError, percentile, row
from bench.server import TIMEOUT, connected
from bench.workload import lengths, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.measure import Row

NAME = "a tenant's p99 while another one floods at 100 times its load, over its p99 alone"
BAR = 2.0
TIMES = 100
CALLS = 200  # of a round; p99 is the second largest
PAUSE = 0.01
SETTLE = 0.5


@contextmanager
def flood(address: str) -> Iterator[None]:
    """While the block runs, 100 calls of another tenant are waiting, of one text each as the light tenant's are.

    Raises:
        CandidateError: The flood's own calls failed, so that there was none.
    """
    stop = threading.Event()
    problems: list[BaseException] = []

    async def caller(services: medkg.AsyncServices, number: int) -> None:
        chance = random.Random(number)
        texts = [sentence(tokens, chance) for tokens in lengths("mixed", 50)]
        while not stop.is_set():
            await services.embedding.embed([chance.choice(texts)])

    async def go() -> None:
        async with medkg.connect_async(address=address, tenant="flood", timeout=TIMEOUT) as services:
            await asyncio.gather(*(caller(services, number) for number in range(TIMES)))

    def run() -> None:
        try:
            asyncio.run(go())
        except BaseException as error:  # noqa: BLE001 - handed to the one who measures
            problems.append(error)

    thread = threading.Thread(target=run, name="flood")
    thread.start()
    try:
        time.sleep(SETTLE)
        yield
    finally:
        stop.set()
        thread.join()
    if problems:
        raise CandidateError(f"the flood ended early: {problems[0]!r}")


def p99(address: str) -> float:
    """Seconds: the light tenant's p99 over calls of one text of mixed length, one after the other."""
    chance = random.Random(22)
    texts = [sentence(tokens, chance) for tokens in lengths("mixed", CALLS)]
    seconds = []
    with medkg.connect(address=address, tenant="light", timeout=TIMEOUT) as services:
        services.embedding.embed(texts[:1])
        for text in texts:
            started = time.perf_counter()
            services.embedding.embed([text])
            seconds.append(time.perf_counter() - started)
            time.sleep(PAUSE)
    return percentile(seconds, 0.99)


def under_flood(address: str, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """p99 alone before and after each flood, and in it."""
    ratios, alone = [], []
    with connected(address) as services:
        services.embedding.embed(["warm"])
    for number in range(1, rounds + 1):
        before = p99(address)
        with flood(address):
            busy = p99(address)
        alone.append((before + p99(address)) / 2)
        ratios.append(busy / alone[-1])
        say(f"  round {number}/{rounds} p99 {1e3 * busy:.1f} ms in the flood, {1e3 * alone[-1]:.1f} ms alone")
    return [
        row(NAME, ratios, "times", peer="itself alone", bar=BAR, note=f"{rounds} rounds of {CALLS} calls"),
        row("that p99 alone", [1e3 * value for value in alone], "ms"),
    ]
