"""medkg's client against grpcio, the client a user would write: the same server, the same call, one run.

The call is GpuService/GetStatus: it computes nothing, so what is measured is the way there and back.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_tools import protoc

import medkg
from bench.measure import Row, interleave, rate, ratio
from medkg.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 2000
THREADS = 32
IN_FLIGHT = 64
METADATA = [("x-tenant-id", "bench")]


def stubs(proto: Path) -> tuple[Any, Any]:
    """The messages and the stub of GpuService, made by grpcio-tools."""
    folder = Path(tempfile.mkdtemp(prefix="medkg-bench-"))
    include = Path(protoc.__file__).parent / "_proto"
    names = ("types", "gpu")
    files = [f"medkg/v1/{name}.proto" for name in names]
    arguments = [f"-I{proto}", f"-I{include}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(["protoc", *arguments, *files]) != 0:
        raise RuntimeError("grpcio-tools could not compile proto/medkg/v1")
    (folder / "medkg").rename(folder / "medkg_wire")
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text().replace("from medkg.v1 import", "from medkg_wire.v1 import"))
    sys.path.insert(0, str(folder))
    from medkg_wire.v1 import gpu_pb2, gpu_pb2_grpc  # noqa: PLC0415

    return gpu_pb2, gpu_pb2_grpc


def per_second(call: Callable[[], object], calls: int = CALLS) -> float:
    """Calls per second of one caller."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return calls / (time.perf_counter() - started)


def median_rate(call: Callable[[], object], calls: int = CALLS) -> float:
    """One over the median latency."""
    latencies = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        latencies.append(time.perf_counter() - started)
    return 1 / statistics.median(latencies)


def threaded(call: Callable[[], object]) -> float:
    """Calls per second of 32 threads together."""
    with ThreadPoolExecutor(THREADS) as pool:
        started = time.perf_counter()
        each = CALLS // THREADS
        list(pool.map(lambda _: [call() for _ in range(each)], range(THREADS)))
        return each * THREADS / (time.perf_counter() - started)


async def in_flight(call: Callable[[], Any]) -> float:
    """Calls per second of one event loop with 64 calls in flight."""
    started = time.perf_counter()

    async def caller() -> None:
        for _ in range(CALLS // IN_FLIGHT):
            await call()

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return CALLS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - started)


def measure(server_binary: Path, proto: Path, *, repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """All rows of the suite."""
    messages, generated = stubs(proto)
    request = messages.GetStatusRequest()
    rows: list[Row] = []
    with (
        LocalServer(server_binary, services=("gpu",)) as server,
        medkg.connect(address=server.address, tenant="bench") as services,
    ):
        target = server.address.removeprefix("http://")
        with grpc.insecure_channel(target) as channel:
            stub = generated.GpuServiceStub(channel)
            plain = lambda: stub.GetStatus(request, metadata=METADATA, timeout=30)  # noqa: E731
            comparisons = (
                ("p50 latency of a small call, one thread (grpcio's over ours)", median_rate, 1 / 0.6),
                (f"small calls/s, {THREADS} threads", threaded, 4.0),
            )
            for name, how, bar in comparisons:
                say(name)
                runs = {"medkg": lambda h=how: h(services.gpu.status), "grpcio": lambda h=how: h(plain)}
                rates = interleave(runs, repetitions=repetitions, say=say)
                rows += [
                    ratio(name, rates["medkg"], rates["grpcio"], peer="grpcio", bar=round(bar, 3)),
                    rate(f"medkg: {name}", rates["medkg"], "calls/s"),
                ]

        def medkg_asyncio() -> float:
            async def go() -> float:
                async with medkg.connect_async(address=server.address, tenant="bench") as connected:
                    return await in_flight(connected.gpu.status)

            return asyncio.run(go())

        def grpc_aio() -> float:
            async def go() -> float:
                async with grpc.aio.insecure_channel(target) as channel:
                    stub = generated.GpuServiceStub(channel)
                    return await in_flight(lambda: stub.GetStatus(request, metadata=METADATA, timeout=30))

            return asyncio.run(go())

        name = f"small calls/s, asyncio, {IN_FLIGHT} in flight"
        say(name)
        rates = interleave({"medkg": medkg_asyncio, "grpc.aio": grpc_aio}, repetitions=repetitions, say=say)
        rows += [
            ratio(name, rates["medkg"], rates["grpc.aio"], peer="grpc.aio", bar=3.0),
            rate(f"medkg: {name}", rates["medkg"], "calls/s"),
        ]
    return rows
