"""What is not throughput: added latency, start to ready, and whether time or memory grow with the work."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import medkg
from bench.measure import CandidateError, Row, judge, percentile, ratio, row, slope
from bench.server import TENANT, TIMEOUT, connected, embed_seconds
from bench.workload import SETS, sentence, texts
from medkg.local import LocalServer, LocalServerError

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE = "medkg.v1.EmbeddingService"
CALLS = 100
MEBIBYTE = 1 << 20
START_LIMIT = 60.0
FEW, MANY = 1_000, 20_000
CALLERS = 8
FLAT = 1.0  # MiB a minute: 20 in the long load
LONG_LOAD = 1200.0
"""Seconds of mixed load from which on the slope is judged: before that, what a server keeps for later still settles."""
LEAST_WAVES = 20
PATIENCE = 4  # times the load's length, if there are fewer waves by then
MOST_TEXTS = 8  # so small that a wave takes below a second on two cores


def added_latency(address: str, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """p95 and median of a call's time at the client, minus the forward passes that the server reports for it."""
    name = "added latency of one short text, over the bare forward pass"
    text = sentence(16, random.Random(20))
    p95, p50, whole = [], [], []
    with connected(address) as services:
        for number in range(rounds + 1):
            added, total = [], []
            for _ in range(CALLS):
                started = time.perf_counter()
                usage = services.embedding.embed([text]).usage
                seconds = time.perf_counter() - started
                added.append(1e3 * (seconds - usage.compute_time))
                total.append(1e3 * seconds)
            if number == 0:
                continue
            p95.append(percentile(added, 0.95))
            p50.append(percentile(added, 0.5))
            whole.append(percentile(total, 0.5))
            say(f"  round {number}/{rounds} p95 {p95[-1]:.2f} ms, median {p50[-1]:.2f} ms")
    return [
        row(f"{name}, p95", p95, "ms", bar=2.0, note=f"{rounds} rounds of {CALLS} calls"),
        row(f"{name}, median", p50, "ms"),
        row("the same calls as a whole, median", whole, "ms"),
    ]


def start_seconds(binary: Path, model: Path) -> float:
    """From starting the process until grpc.health.v1 says SERVING for the embedding service.

    Raises:
        CandidateError: It did not start, or was not ready in a minute.
    """
    server = LocalServer(
        binary,
        services=("embedding",),
        embedding_models={"m": model},
        wait=False,
        start_timeout=START_LIMIT,
    )
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    try:
        started = time.perf_counter()
        server.start()
        with grpc.insecure_channel(server.address.removeprefix("http://")) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while check(request, timeout=START_LIMIT).status != health_pb2.HealthCheckResponse.SERVING:
                if time.perf_counter() - started > START_LIMIT:
                    raise CandidateError(f"gpu-server was not ready in {START_LIMIT:.0f} s")
                time.sleep(0.005)
            return time.perf_counter() - started
    except (LocalServerError, grpc.RpcError, OSError) as error:
        raise CandidateError(f"gpu-server did not start: {error}") from None
    finally:
        server.kill()
        server.log_path.unlink(missing_ok=True)


def start_to_ready(binary: Path, model: Path, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Several starts; the one before them brings binary, libtorch and weights into the page cache."""
    start_seconds(binary, model)
    seconds = []
    for number in range(1, rounds + 1):
        seconds.append(start_seconds(binary, model))
        say(f"  round {number}/{rounds} {seconds[-1]:.2f} s")
    return [row("start to ready, weights in the page cache", seconds, "s", bar=1.5)]


def growth(address: str, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Texts per second of one call with 20,000 short texts over calls with 1,000 of them before and after it."""
    many = texts("short", MANY)
    few = many[:FEW]

    def per_second(batch: list[str]) -> float:
        return len(batch) / embed_seconds(address, batch, 1)

    per_second(few)
    large, small = [], []
    for number in range(1, rounds + 1):
        around = [per_second(few), per_second(few)]
        large.append(per_second(many))
        around += [per_second(few), per_second(few)]
        small.append(statistics.median(around))
        say(f"  round {number}/{rounds} {large[-1]:,.1f} texts/s with {MANY:,}, {small[-1]:,.1f} with {FEW:,}")
    name = f"growth: texts/s of {MANY:,} short texts over {FEW:,}"
    return [ratio(name, large, small, peer=f"gpu-server, {FEW:,} texts", bar=0.95, note=f"{rounds} rounds")]


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


async def mixed_load(address: str, seconds: float, sample: Callable[[], None], say: Callable[[str], None]) -> None:
    """Waves of 8 calls, 7 embed and 1 reranks, 1 to 8 texts of all lengths each; `sample` runs after each wave."""
    chance = random.Random(21)
    stock = [text for kind in SETS for text in texts(kind, 100)]
    started = said = time.perf_counter()
    async with medkg.connect_async(address=address, tenant=TENANT, timeout=TIMEOUT) as services:
        waves = 0
        while (passed := (now := time.perf_counter()) - started) < seconds or (
            waves < LEAST_WAVES and passed < PATIENCE * seconds
        ):
            waves += 1
            first, *batches = [chance.choices(stock, k=chance.randint(1, MOST_TEXTS)) for _ in range(CALLERS)]
            await asyncio.gather(
                services.reranking.rerank("heart failure therapy", first),
                *(services.embedding.embed(batch) for batch in batches),
            )
            sample()
            if now - said > 15:
                said = now
                say(f"  {passed:.0f} of {seconds:.0f} s, {waves} waves")


def flat_memory(server: LocalServer, seconds: float, say: Callable[[str], None]) -> list[Row]:
    """The slope of resident memory over the last two thirds of a mixed load, its memory measured between the waves."""
    times: list[float] = []
    sizes: list[float] = []
    pid = server.pid

    def sample() -> None:
        times.append(time.perf_counter() / 60)
        sizes.append(resident(pid))

    try:
        asyncio.run(mixed_load(server.address, seconds, sample, say))
    except medkg.MedkgError as error:
        raise CandidateError(f"gpu-server under the mixed load: {error}") from error
    kept = len(times) // 3
    times, sizes = times[kept:], sizes[kept:]
    if len(times) < LEAST_WAVES // 2:
        raise CandidateError(f"{len(times)} waves in {PATIENCE * seconds:.0f} s are too few for a slope")
    per_minute, error = slope(times, sizes)
    unit = "MiB/min"
    bar = FLAT if seconds >= LONG_LOAD else None
    value = round(per_minute, 3)
    spread = (round(per_minute - 2 * error, 3), round(per_minute + 2 * error, 3))
    note = f"{seconds:.0f} s of load, {len(times)} points; spread: two standard errors of the slope"
    note += "" if bar else f"; too short to be judged: --load {LONG_LOAD:.0f}"
    return [
        Row(
            "growth: resident memory over a mixed load",
            value,
            unit,
            "",
            value,
            spread,
            bar,
            judge(value, unit, bar),
            note,
        ),
        row("resident memory between the waves of that load", sizes, "MiB"),
    ]
