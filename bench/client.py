"""medkg's client against grpcio, the client a user would write: the same server, the same call, one run.

Small calls are GpuService/GetStatus: it computes nothing, so what is measured is the way there and back. Embeddings
come from a server that answers without computing (rust/medkg-client/benches/client.rs), which also compares the Rust
client with a bare tonic client.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

import medkg
from bench.measure import Row, interleave, rate, ratio, row
from medkg.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 6400
ROWS = 1000
DIMENSION = 1024
THREADS = 32
IN_FLIGHT = 64
METADATA = [("x-tenant-id", "bench")]
ROOT = Path(__file__).resolve().parents[1]


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
    return [
        *small_calls(server_binary, proto, repetitions=repetitions, say=say),
        *with_rust_peer(repetitions=repetitions, say=say),
        *footprint(repetitions=repetitions, say=say),
    ]


def small_calls(server_binary: Path, proto: Path, *, repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """Calls that compute nothing."""
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


def rust_peer() -> str:
    """The program behind the embeddings and the comparison with tonic, built if it is not."""
    command = ["cargo", "bench", "--locked", "-p", "medkg-client", "--bench", "client", "--no-run"]
    built = subprocess.run([*command, "--message-format=json"], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    programs = [json.loads(line).get("executable") for line in built.stdout.splitlines()]
    return next(program for program in programs if program)


def with_rust_peer(*, repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """Embeddings into numpy, and the Rust client beside a bare tonic client."""
    say("building the peer in Rust")
    program = rust_peer()
    say("the Rust client beside a bare tonic client")
    compared = subprocess.run([program, "compare", str(repetitions)], stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(compared.stdout)
    added = [ours - bare for ours, bare in zip(told["p95"]["medkg"], told["p95"]["tonic"], strict=True)]
    name = f"Rust: calls/s, {IN_FLIGHT} in flight"
    rows = [
        ratio(name, told["calls"]["medkg"], told["calls"]["tonic"], peer="bare tonic client", bar=0.9),
        rate(f"medkg: {name}", told["calls"]["medkg"], "calls/s"),
        row("Rust: added to the 95th percentile of a call", added, "us", peer="bare tonic client", bar=100.0),
    ]
    with subprocess.Popen([program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip() if server.stdout else ""
            rows += embeddings(address, repetitions=repetitions, say=say)
        finally:
            server.terminate()
    return rows


def embeddings(address: str, *, repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """1,000 x 1,024 f32 into a numpy array, from one caller."""
    floats, octets, wanted = vector_messages()
    options = [("grpc.max_receive_message_length", -1)]
    texts = ["x"] * ROWS

    def medkg_rate() -> float:
        return per_second(lambda: client.embed(texts).vectors, 30)

    with (
        medkg.EmbeddingClient(address=address, tenant="bench", max_batch_texts=ROWS) as client,
        grpc.insecure_channel(address.removeprefix("http://"), options) as channel,
    ):

        def stub(method: str, answer: Any) -> Callable[[], Any]:
            call = channel.unary_unary(
                f"/bench.Vectors/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=answer.FromString,
            )
            return lambda: call(wanted(rows=ROWS), timeout=30)

        as_floats, as_bytes = stub("Floats", floats), stub("Bytes", octets)

        def floats_rate() -> float:
            read = lambda: np.array(as_floats().values, dtype=np.float32).reshape(ROWS, DIMENSION)  # noqa: E731
            return per_second(read, 10)

        def bytes_rate() -> float:
            read = lambda: np.frombuffer(as_bytes().values, dtype=np.float32).reshape(ROWS, DIMENSION)  # noqa: E731
            return per_second(read, 30)

        # In pairs, and bytes twice: after the large lists of repeated floats glibc keeps the pages that bytes takes.
        name = f"{ROWS:,} x {DIMENSION:,} f32 into numpy"
        rows = []
        pairs = (
            ("bytes", bytes_rate, 2.0),
            ("repeated float", floats_rate, 20.0),
            ("bytes, pages kept", bytes_rate, 2.0),
        )
        for peer, how, bar in pairs:
            say(f"{name}, {peer}")
            rates = interleave({"medkg": medkg_rate, peer: how}, repetitions=repetitions, say=say)
            rows += [
                ratio(name, rates["medkg"], rates[peer], peer=f"grpcio, {peer}", bar=bar),
                rate(f"medkg: {name}, beside {peer}", rates["medkg"], "calls/s"),
            ]
    return rows


def vector_messages() -> tuple[Any, Any, Any]:
    """The messages of bench.Vectors, as the Rust peer has them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    for message, name, kind, label in (
        ("Floats", "values", field.TYPE_FLOAT, field.LABEL_REPEATED),
        ("Octets", "values", field.TYPE_BYTES, field.LABEL_OPTIONAL),
        ("Wanted", "rows", field.TYPE_UINT32, field.LABEL_OPTIONAL),
    ):
        file.message_type.add(name=message).field.add(name=name, number=1, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    of = lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.{name}"))  # noqa: E731
    return of("Floats"), of("Octets"), of("Wanted")


def footprint(*, repetitions: int, say: Callable[[str], None]) -> list[Row]:
    """What `import medkg` costs a process, and the size of the wheel."""
    say("import medkg")

    def spent(code: str) -> tuple[float, float]:
        """Milliseconds and MiB of a process."""
        started = time.perf_counter()
        # Not getrusage: its peak is that of the process before exec too, which is this one.
        report = f"{code}; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        # With bytecode on disk after the first time, as pip leaves a package that it has installed.
        compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        ended = subprocess.run(
            [sys.executable, "-c", report], env=compiled, stdout=subprocess.PIPE, text=True, check=True
        )
        return (time.perf_counter() - started) * 1000, int(ended.stdout) / 1024

    pairs = [(spent("import medkg; medkg.connect"), spent("pass")) for _ in range(max(repetitions, 5))]
    rows = [
        row("import medkg", [ours[0] - bare[0] for ours, bare in pairs], "ms", peer="", bar=60.0),
        row("memory of import medkg", [ours[1] - bare[1] for ours, bare in pairs], "MiB", peer="", bar=25.0),
    ]
    wheels = sorted((ROOT / "dist").glob("medkg-*.whl"))
    if wheels:
        size = wheels[-1].stat().st_size / 2**20
        rows.append(row("the wheel", [size], "MiB", peer="", bar=12.0))
    return rows
