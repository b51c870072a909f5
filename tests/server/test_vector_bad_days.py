"""Collections on bad days: a full disk, a read-only folder, damaged files, too little memory.

Each time the error says what happened, nothing of the refused call is there, and what can be served still is.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import medkg
from medkg.local import LocalServer

from .conftest import Refusal
from .test_vectors import ONLY_VECTOR, Vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIMENSION = 64
BIG = 40_000
"""Points of a write for which the file has to grow."""
STATE_SECONDS = 60.0
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
READ_ONLY = (grpc.StatusCode.FAILED_PRECONDITION, "STORAGE_READ_ONLY")
DAMAGED = (grpc.StatusCode.DATA_LOSS, "COLLECTION_DAMAGED")
COLLECTIONS = "medkg.v1.VectorService/collections"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def rows(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def ids(count: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{number:05d}" for number in range(count)]


def refusal_of(vectors: Vectors, name: str, request: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        vectors.call(name, request)
    return Refusal(caught.value)


def upsert_refused(vectors: Vectors, name: str, names: list[str], values: np.ndarray) -> tuple[grpc.StatusCode, str]:
    request = vectors.w.UpsertVectorsRequest(collection=name, ids=names, vectors=vectors.tensor(values))
    refusal = refusal_of(vectors, "UpsertVectors", request)
    assert f'"{name}"' in refusal.message, "the collection is named"
    return refusal.code, refusal.reason


class State:
    """What a collection answers; two are compared."""

    def __init__(self, vectors: Vectors, name: str, names: list[str]) -> None:
        self.points = vectors.points(name)
        self.found = vectors.search(name, rows(3, seed=9), 10)
        request = vectors.w.FetchVectorsRequest(collection=name, ids=names, with_vectors=True, with_payload=True)
        fetched = vectors.call("FetchVectors", request)
        self.fetched = (list(fetched.ids), fetched.vectors.data, list(fetched.payloads), list(fetched.missing))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.points)


def filled(vectors: Vectors, name: str = "kept", count: int = 200) -> None:
    vectors.create(name, "L2", DIMENSION)
    vectors.upsert(name, ids(count), rows(count), [f'{{"n": {number}}}' for number in range(count)])


def health(channel: grpc.Channel, service: str) -> Any:
    """The status of a name; None where nothing is known of it."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


def eventually(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STATE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it is never so: {what}"
        time.sleep(0.02)


def test_a_full_disk_refuses_the_write_and_serves_again_once_there_is_room(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    """The disk is played by a limit on the size of files, which anybody may set and lift."""
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    filled(vectors)
    before = State(vectors, "kept", [*ids(200), "q00000"])
    size = (tmp_path / "raw" / "kept.redb").stat().st_size
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))
    for _ in range(3):
        assert upsert_refused(vectors, "kept", ids(BIG, "q"), rows(BIG)) == FULL
        assert State(vectors, "kept", [*ids(200), "q00000"]) == before
    with (
        medkg.connect(address=server.address, tenant="raw", timeout=60) as services,
        pytest.raises(medkg.StorageFullError) as caught,
    ):
        services.vector.upsert("kept", ids(BIG, "q"), rows(BIG))
    assert (caught.value.attempts, caught.value.retryable, caught.value.http_status) == (1, False, 507)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert vectors.upsert("kept", ids(BIG, "q"), rows(BIG)) == (BIG, 0)
    assert vectors.points("kept") == BIG + 200
    after = State(vectors, "kept", ids(BIG, "q"))
    server.stop()
    server.start()
    assert State(Vectors(wire, open_channel(server)), "kept", ids(BIG, "q")) == after
    server.stop()


def in_namespace(tmp_path: Path, binary: Path, setup: str) -> Path:
    """gpu-server in a mount namespace of its own, in which `setup` (shell) was done before; as the same process."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody make a mount namespace (unshare -rm)")
    script = tmp_path / "gpu-server"
    inside = f'{setup} && exec {shlex.quote(str(binary))} "$@"'
    script.write_text(f'#!/bin/sh\nexec unshare -rm sh -ec {shlex.quote(inside)} sh "$@"\n')
    script.chmod(0o755)
    return script


def own_server(tmp_path: Path, binary: Path, data: Path) -> LocalServer:
    return LocalServer(
        binary, services=("gpu", "vector"), data_dir=data, threads=1, log_path=tmp_path / "namespace.jsonl"
    )


def test_a_disk_without_room_refuses_the_write_and_serves_again_once_there_is_some(
    wire: Any, gpu_server_binary: Path, open_channel: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    setup = f"mount -t tmpfs -o size=96m none {shlex.quote(str(data))}"
    with own_server(tmp_path, in_namespace(tmp_path, gpu_server_binary, setup), data) as server:
        vectors = Vectors(wire, open_channel(server))
        filled(vectors)
        before = State(vectors, "kept", ids(200))
        ballast = data / "ballast"
        seen_from_here = Path(f"/proc/{server.pid}/root{ballast}")
        with seen_from_here.open("wb") as file:
            free = os.fstatvfs(file.fileno())
            file.write(bytes(free.f_bavail * free.f_frsize))
        assert upsert_refused(vectors, "kept", ids(BIG, "q"), rows(BIG)) == FULL
        assert State(vectors, "kept", ids(200)) == before
        collection = vectors.w.Collection(name="another", dimension=DIMENSION)
        request = vectors.w.CreateCollectionRequest(collection=collection)
        refusal = refusal_of(vectors, "CreateCollection", request)
        assert (refusal.code, refusal.reason) == FULL
        seen_from_here.unlink()
        assert vectors.upsert("kept", ids(BIG, "q"), rows(BIG)) == (BIG, 0)
        assert vectors.create("another", "L2", DIMENSION)


def test_a_read_only_folder_is_served_for_reading(
    wire: Any, gpu_server_binary: Path, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    server = start_server(**ONLY_VECTOR, data_dir=data)
    vectors = Vectors(wire, open_channel(server))
    filled(vectors)
    before = State(vectors, "kept", ids(200))
    server.stop()
    there = shlex.quote(str(data))
    setup = f"mount --bind {there} {there} && mount -o remount,bind,ro {there}"
    with own_server(tmp_path, in_namespace(tmp_path, gpu_server_binary, setup), data) as server:
        vectors = Vectors(wire, open_channel(server))
        assert State(vectors, "kept", ids(200)) == before
        assert upsert_refused(vectors, "kept", ids(3, "q"), rows(3)) == READ_ONLY
        requests = [
            ("DeleteVectors", vectors.w.DeleteVectorsRequest(collection="kept", ids=["p00000"])),
            (
                "CreateCollection",
                vectors.w.CreateCollectionRequest(collection=vectors.w.Collection(name="b", dimension=3)),
            ),
            ("DropCollection", vectors.w.DropCollectionRequest(collection="kept")),
        ]
        for name, request in requests:
            refusal = refusal_of(vectors, name, request)
            assert (refusal.code, refusal.reason) == READ_ONLY, name
        assert State(vectors, "kept", ids(200)) == before
        assert any("cannot be written" in str(event.get("message")) for event in server.events())


def test_a_folder_that_becomes_read_only_refuses_new_collections_and_serves_those_it_has(
    wire: Any, gpu_server_binary: Path, open_channel: Any, tmp_path: Path
) -> None:
    binary = gpu_server_binary
    if os.geteuid() == 0:
        # The superuser writes everywhere, unless it gives that right up.
        if shutil.which("setpriv") is None:
            pytest.skip("the superuser writes everywhere, and there is no setpriv to give that up")
        binary = tmp_path / "gpu-server"
        command = "setpriv --bounding-set=-all --inh-caps=-all"
        binary.write_text(f'#!/bin/sh\nexec {command} {shlex.quote(str(gpu_server_binary))} "$@"\n')
        binary.chmod(0o755)
    data = tmp_path / "data"
    with own_server(tmp_path, binary, data) as server:
        vectors = Vectors(wire, open_channel(server))
        filled(vectors)
        before = State(vectors, "kept", ids(200))
        folder = data / "raw"
        folder.chmod(0o555)
        try:
            request = vectors.w.CreateCollectionRequest(collection=vectors.w.Collection(name="b", dimension=3))
            refusal = refusal_of(vectors, "CreateCollection", request)
            assert (refusal.code, refusal.reason) == READ_ONLY
            assert State(vectors, "kept", ids(200)) == before
        finally:
            folder.chmod(0o755)
        assert vectors.create("b", "L2", 3)
        assert vectors.upsert("kept", ids(3, "q"), rows(3)) == (3, 0)


@pytest.fixture
def operated(start_server: Callable[..., LocalServer], tmp_path: Path) -> LocalServer:
    """A server with collections "good" and "bad", and an address of operators."""
    return start_server(**ONLY_VECTOR, data_dir=tmp_path / "data", arguments=["--admin-listen", "127.0.0.1:0"])


@pytest.fixture
def admin(operated: LocalServer) -> Iterator[Callable[[], grpc.Channel]]:
    """A channel to the operators' address, wherever it is since the last start."""
    channels = []

    def connect() -> grpc.Channel:
        lines = [line for line in operated.events() if "operators are served" in str(line.get("message"))]
        channels.append(grpc.insecure_channel(str(lines[-1]["address"])))
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


BAD = "medkg.v1.VectorService/raw/bad"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "no-database"])
def test_a_damaged_file_is_named_to_its_tenant_and_to_operators_and_to_nobody_else(
    wire: Any, operated: LocalServer, admin: Callable[[], grpc.Channel], open_channel: Any, tmp_path: Path, damage: str
) -> None:
    vectors = Vectors(wire, open_channel(operated))
    for name in ("good", "bad"):
        filled(vectors, name)
    assert health(vectors.channel, COLLECTIONS) == SERVING
    before = State(vectors, "good", ids(200))
    operated.stop()
    file = tmp_path / "data" / "raw" / "bad.redb"
    whole = file.read_bytes()
    at = whole.index(rows(200)[77].tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :]
    bytes_of = {"flipped": flipped, "truncated": whole[: at + 1], "empty": b"", "no-database": b"something else" * 1000}
    file.write_bytes(bytes_of[damage])
    operated.start()
    vectors = Vectors(wire, open_channel(operated))
    assert State(vectors, "good", ids(200)) == before
    request = vectors.w.SearchVectorsRequest(collection="bad", queries=vectors.tensor(rows(1)), k=1)
    refusal = refusal_of(vectors, "SearchVectors", request)
    assert (refusal.code, refusal.reason) == DAMAGED
    assert '"bad"' in refusal.message
    listed = vectors.call("ListCollections", vectors.w.ListCollectionsRequest()).collections
    assert [collection.name for collection in listed] == ["good"]
    operators = admin()
    assert health(operators, BAD) == NOT_SERVING
    assert health(vectors.channel, BAD) is None, "whoever may ask could else find out what other tenants have"
    assert health(vectors.channel, COLLECTIONS) == health(operators, COLLECTIONS) == NOT_SERVING
    for service in ("", "medkg.v1.VectorService"):
        assert health(vectors.channel, service) == SERVING, "the others are served"
    vectors.call("DropCollection", vectors.w.DropCollectionRequest(collection="bad"))
    eventually("health is well", lambda: health(vectors.channel, COLLECTIONS) == SERVING)
    assert health(operators, BAD) is None
    assert vectors.create("bad", "L2", DIMENSION)
    operated.stop()


def test_damage_that_shows_while_a_collection_is_served_ends_it_at_once(
    wire: Any, operated: LocalServer, admin: Callable[[], grpc.Channel], open_channel: Any, tmp_path: Path
) -> None:
    vectors = Vectors(wire, open_channel(operated))
    for name in ("good", "bad"):
        filled(vectors, name)
    operators = admin()
    before = State(vectors, "good", ids(200))
    file = tmp_path / "data" / "raw" / "bad.redb"
    # Pages that were given up may still hold the row: every copy is damaged.
    copies = [found.start() for found in re.finditer(re.escape(rows(200)[77].tobytes()), file.read_bytes())]
    assert copies
    with file.open("r+b") as damaged:
        for at in copies:
            damaged.seek(at)
            damaged.write(b"\xff\xff")
    # Pages are in memory; after an error of the disk the file is read anew.
    soft, hard = resource.prlimit(operated.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(operated.pid, resource.RLIMIT_FSIZE, (file.stat().st_size, hard))
    assert upsert_refused(vectors, "bad", ids(BIG, "q"), rows(BIG)) == FULL
    resource.prlimit(operated.pid, resource.RLIMIT_FSIZE, (soft, hard))
    request = vectors.w.FetchVectorsRequest(collection="bad", ids=ids(200), with_vectors=True)
    refusal = refusal_of(vectors, "FetchVectors", request)
    assert (refusal.code, refusal.reason) == DAMAGED
    search = vectors.w.SearchVectorsRequest(collection="bad", queries=vectors.tensor(rows(1)), k=1)
    refusal = refusal_of(vectors, "SearchVectors", search)
    assert (refusal.code, refusal.reason) == DAMAGED
    eventually("operators are told", lambda: health(operators, BAD) == NOT_SERVING)
    assert health(vectors.channel, COLLECTIONS) == NOT_SERVING
    assert any("not served any more" in str(event.get("message")) for event in operated.events())
    assert State(vectors, "good", ids(200)) == before
    operated.stop()


def test_a_write_that_does_not_fit_into_the_devices_memory_is_not_stored(
    wire: Any, start_server: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    """The device is the processor; its memory is a limit on the address space, which leaves room for the message."""
    server = start_server(**ONLY_VECTOR, data_dir=tmp_path)
    vectors = Vectors(wire, open_channel(server))
    dimension, count = 1024, 2_000
    vectors.create("large", "DOT", dimension)
    random = np.random.default_rng(2)
    for part in range(12):
        values = random.normal(size=(count, dimension)).astype(np.float32)
        vectors.upsert("large", ids(count, f"{part:02d}-"), values)
    request = vectors.w.GetCollectionStatisticsRequest(collection="large")
    before = vectors.call("GetCollectionStatistics", request)
    room = before.device_bytes // (dimension * 4) - before.points
    status = Path(f"/proc/{server.pid}/status").read_text()
    used = int(status.split("VmSize:")[1].split()[0]) * 1024
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_AS)
    # Twice the rows do not fit any more; what a call itself needs does.
    resource.prlimit(server.pid, resource.RLIMIT_AS, (used + before.device_bytes, hard))
    values = random.normal(size=(count, dimension)).astype(np.float32)
    written = 0

    def one_more() -> Refusal | None:
        try:
            vectors.upsert("large", ids(count, f"more-{written}-"), values)
        except grpc.RpcError as error:
            return Refusal(error)
        return None

    # The spare rows are used first.
    while (refused := one_more()) is None and written <= room:
        written += count
    assert refused is not None, "the rows did fit"
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GPU_OUT_OF_MEMORY")
    assert vectors.points("large") == before.points + written
    [[(nearest, _, _)]] = vectors.search("large", 10 * values[:1], 1)
    assert not nearest.startswith(f"more-{written}-"), "nothing of it is found"
    resource.prlimit(server.pid, resource.RLIMIT_AS, (soft, hard))
    names = ids(count, f"more-{written}-")
    fetch = vectors.w.FetchVectorsRequest(collection="large", ids=names)
    assert list(vectors.call("FetchVectors", fetch).ids) == [], "nothing of it was stored"
    assert vectors.upsert("large", names, values) == (count, 0)
    server.stop()
    server.start()
    assert Vectors(wire, open_channel(server)).points("large") == before.points + written + count
    server.stop()
