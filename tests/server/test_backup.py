"""Backup and restore while the server serves: `gpu-server backup` and `gpu-server restore` against a running server."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg
from medkg.filters import Equals
from medkg.local import LocalServer

from .operators import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .authority import Authority

ONLY_VECTOR: dict[str, Any] = {"services": ("vector",), "embedding_models": {}, "reranking_models": {}}
DAMAGED, NO_INPUT, UNAVAILABLE, CANNOT_CREATE, USAGE, INTERRUPTED = 65, 66, 69, 73, 64, 130


class Site:
    """A server with a folder for backups, and what an operator does to it."""

    def __init__(self, server: LocalServer, binary: Path, data: Path, backups: Path) -> None:
        self.server, self.binary, self.data, self.backups = server, binary, data, backups
        lines = [line for line in server.events() if str(line.get("message")).startswith("operators are served")]
        line = lines[-1]
        self.admin = f"http://{line['address']}"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.binary), arguments[0], "--admin", self.admin, *arguments[1:]]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)

    def backup(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("backup", "--to", name, *arguments)

    def restore(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("restore", "--from", name, *arguments)

    def client(self, tenant: str) -> medkg.VectorClient:
        return medkg.VectorClient(address=self.server.address, tenant=tenant)


@pytest.fixture
def site(start_server: Callable[..., LocalServer], gpu_server_binary: Path, tmp_path: Path) -> Callable[..., Site]:
    """Starts servers that share one folder for backups."""

    def start(name: str, binary: Path = gpu_server_binary) -> Site:
        backups = tmp_path / "backups"
        backups.mkdir(exist_ok=True)
        arguments = ["--admin-listen", "127.0.0.1:0", "--backup-root", str(backups)]
        options: dict[str, Any] = {**ONLY_VECTOR, "data_dir": tmp_path / name}
        if binary == gpu_server_binary:
            server = start_server(arguments=arguments, **options)
        else:
            server = LocalServer(
                binary, arguments=arguments, log_path=tmp_path / f"{name}.log", threads=1, **options
            ).start()
        return Site(server, gpu_server_binary, tmp_path / name, backups)

    return start


def rows(count: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(count: int) -> list[str]:
    return [f"{row:06}" for row in range(count)]


def fill(client: medkg.VectorClient, name: str, count: int, dimension: int = 16, seed: int = 0, **made: Any) -> None:
    client.create_collection(name, dimension, **made)
    payloads = [{"n": row, "even": row % 2 == 0, "text": "é✓"} if row % 3 else None for row in range(count)]
    client.upsert(name, names(count), rows(count, dimension, seed), payloads)


def everything(client: medkg.VectorClient, name: str, ids: list[str]) -> tuple[Any, ...]:
    """What callers see: every point as it was written, and some searches."""
    found = client.fetch(name, ids)
    assert found.vectors is not None
    dimension = client.statistics(name).dimension
    queries = rows(5, dimension, seed=77)
    hits = client.search(name, queries, 20)
    filtered = client.search(name, queries, 20, filter=Equals("even", True))  # noqa: FBT003 - the value
    return found.ids, found.vectors.tobytes(), found.payloads, hits, filtered


def test_a_backup_restored_into_a_fresh_server_answers_the_same(site: Callable[..., Site]) -> None:
    first, second = site("first"), site("second")
    for tenant, name, made in (("a", "c", {}), ("a", "half.prec", {"storage": "bf16"}), ("b", "c", {"metric": "l2"})):
        fill(first.client(tenant), name, 2_000, seed=len(name + tenant), **made)
    first.client("a").create_collection("empty", 3)
    done = first.backup("nightly")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("backed up: nightly, 4 collections, 6000 points, ")
    assert "[4/4] b/c" in done.stderr
    manifest = json.loads((first.backups / "nightly" / "manifest.json").read_text())
    assert [(one["tenant"], one["collection"], one["points"]) for one in manifest["collections"]] == [
        ("a", "c", 2_000),
        ("a", "empty", 0),
        ("a", "half.prec", 2_000),
        ("b", "c", 2_000),
    ]
    for one in manifest["collections"]:
        path = first.backups / "nightly" / one["tenant"] / f"{one['collection']}.redb"
        assert path.stat().st_size == one["bytes"]
        digest = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
        assert digest == one["sha256"]
    checked = second.restore("nightly", "--check")
    assert (checked.returncode, second.client("a").collections()) == (0, []), checked.stderr
    restored = second.restore("nightly")
    assert restored.returncode == 0, restored.stderr
    assert restored.stdout.startswith("restored: nightly, 4 collections, 6000 points, ")
    for tenant, name in (("a", "c"), ("a", "half.prec"), ("b", "c")):
        before, after = (everything(one.client(tenant), name, names(2_000)) for one in (first, second))
        assert before == after, f"{tenant}/{name}"
    assert [info.name for info in second.client("a").collections()] == ["c", "empty", "half.prec"]
    # It is a collection like all others, also for the next start.
    second.client("b").upsert("c", ["new"], rows(1))
    second.server.stop()
    second.server.start()
    assert second.client("b").count("c") == 2_001
    audited = [line for line in first.server.events() if line.get("audit") is True]
    assert [(line["action"], line["outcome"], line["tenant"]) for line in audited] == [
        ("CreateBackup", "done", "operator")
    ]


def test_a_copy_made_while_points_are_written_is_one_moment_of_them(site: Callable[..., Site]) -> None:
    own = site("busy")
    client = own.client("t")
    client.create_collection("c", 16, "dot")
    client.upsert("c", names(20_000), rows(20_000))
    always = [f"always-{i}" for i in range(100)]
    stop, acknowledged = threading.Event(), [0]

    def write() -> None:
        writer = own.client("t")
        while not stop.is_set():
            turn = acknowledged[0] + 1
            # One call, so that all of it is written or nothing: every id says which call was the last.
            ids = [*always, f"turn-{turn}"]
            writer.upsert("c", ids, np.full((len(ids), 16), turn, dtype=np.float32), [{"turn": turn}] * len(ids))
            acknowledged[0] = turn

    thread = threading.Thread(target=write)
    thread.start()
    try:
        eventually(lambda: acknowledged[0] > 2)
        before = acknowledged[0]
        done = own.backup("moment")
        after = acknowledged[0]
    finally:
        stop.set()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert after > before, "writes must go on while a backup is made"
    assert own.restore("moment", "--replace").returncode == 0
    found = client.fetch("c", always)
    assert found.vectors is not None
    assert found.payloads is not None
    last = int(found.vectors[0, 0])
    assert before <= last <= after + 1
    assert found.missing == []
    assert np.all(found.vectors == last), "parts of different calls"
    assert all(payload == {"turn": last} for payload in found.payloads)
    turns = client.fetch("c", [f"turn-{turn}" for turn in range(1, last + 50)])
    assert turns.ids == [f"turn-{turn}" for turn in range(1, last + 1)]
    assert client.count("c") == 20_000 + 100 + last


def test_one_flipped_byte_anywhere_is_refused_and_changes_nothing(site: Callable[..., Site]) -> None:
    own = site("flipped")
    client = own.client("t")
    fill(client, "c", 500)
    fill(client, "d", 500)
    assert own.backup("b").returncode == 0
    client.upsert("c", ["later"], rows(1))
    folder = own.backups / "b"
    for path in [
        folder / "manifest.json",
        folder / "manifest.sha256",
        folder / "t" / "c.redb",
        folder / "t" / "d.redb",
    ]:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            refused = own.restore("b", "--replace")
            assert refused.returncode == DAMAGED, (path, place, refused)
            assert "damaged" in refused.stderr
        path.unlink()
        assert own.restore("b", "--replace").returncode == DAMAGED, path
        path.write_bytes(whole)
    assert client.fetch("c", ["later"]).ids == ["later"], "nothing was restored"
    assert own.restore("b", "--replace").returncode == 0
    assert client.fetch("c", ["later"]).ids == []


def test_a_restore_replaces_only_what_it_is_told_to(site: Callable[..., Site]) -> None:
    own = site("chosen")
    mine, theirs = own.client("mine"), own.client("theirs")
    for client in (mine, theirs):
        fill(client, "c", 300)
        fill(client, "d", 300)
    assert own.backup("b").returncode == 0
    for client in (mine, theirs):
        client.upsert("c", ["later"], rows(1))
        client.drop_collection("d")
    refused = own.restore("b", "--tenant", "mine")
    assert (refused.returncode, "mine/c" in refused.stderr) == (CANNOT_CREATE, True), refused
    assert [info.name for info in mine.collections()] == ["c"], "refused before anything is changed"
    assert own.restore("b", "--tenant", "mine", "--collection", "d").returncode == 0
    assert own.restore("b", "--tenant", "mine", "--collection", "c", "--replace").returncode == 0
    assert (mine.count("c"), mine.count("d")) == (300, 300)
    assert theirs.count("c") == 301, "another tenant's is as it was"
    assert [info.name for info in theirs.collections()] == ["c"]
    lacking = own.restore("b", "--tenant", "mine", "--collection", "nothing")
    assert (lacking.returncode, "mine/nothing" in lacking.stderr) == (NO_INPUT, True)
    assert own.restore("nothing").returncode == NO_INPUT
    assert own.backup("b").returncode == CANNOT_CREATE
    assert own.backup("x", "--tenant", "mine", "--collection", "nothing").returncode == NO_INPUT
    for outside in ("../x", "/x", ".x", ""):
        assert own.backup(outside).returncode == USAGE, outside
        assert own.restore(outside).returncode == USAGE, outside
    only = own.backup("only", "--tenant", "theirs", "--collection", "c")
    assert only.stdout.startswith("backed up: only, 1 collections, 301 points, "), only
    assert sorted(path.name for path in own.backups.iterdir()) == ["b", "only"]


def test_callers_do_not_notice_that_a_collection_is_exchanged(site: Callable[..., Site]) -> None:
    own = site("exchanged")
    client = own.client("t")
    fill(client, "c", 3_000)
    assert own.backup("b").returncode == 0
    stop, problems, answered = threading.Event(), [], [0]

    def call() -> None:
        caller = own.client("t")
        try:
            while not stop.is_set():
                assert len(caller.search("c", rows(1), 5)[0]) == 5
                caller.upsert("c", ["while"], rows(1))
                answered[0] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure
            problems.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            before = answered[0]
            done = own.restore("b", "--replace")
            assert done.returncode == 0, done.stderr
            eventually(lambda before=before: bool(problems) or answered[0] > before)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert own.restore("b", "--replace").returncode == 0
    assert client.count("c") == 3_000
    assert client.check_recall("c", sample=20).mismatches == 0
    assert [path.name for path in (own.data / "t").iterdir()] == ["c.redb"]


def partials(own: Site) -> list[str]:
    return [path.name for path in own.backups.iterdir() if path.name.startswith(".")]


def begun(own: Site, name: str) -> subprocess.Popen[str]:
    """A backup that is being made."""
    process = subprocess.Popen(own.command("backup", "--to", name), stderr=subprocess.PIPE, text=True)
    eventually(lambda: bool(partials(own)) or process.poll() is not None)
    return process


def test_an_interrupted_backup_is_never_taken_for_one(site: Callable[..., Site]) -> None:
    own = site("interrupted")
    fill(own.client("t"), "c", 30_000, dimension=128)
    for attempt in range(10):
        process = begun(own, f"left-{attempt}")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert (process.returncode, "interrupted" in told) == (INTERRUPTED, True), told
    eventually(lambda: not partials(own))
    name = f"left-{attempt}"
    assert own.restore(name).returncode == NO_INPUT
    for attempt in range(10):
        name = f"killed-{attempt}"
        process = begun(own, name)
        os.kill(own.server.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode in {0, UNAVAILABLE}
        own.server.stop()
        own.server.start()
        own = Site(own.server, own.binary, own.data, own.backups)
        if process.returncode != 0:
            break
    assert partials(own) == [f".{name}.partial"], "it was killed in the middle"
    assert own.restore(name, "--check").returncode == NO_INPUT
    assert own.backup(name).returncode == 0, "the name can be used, and what was left goes"
    assert partials(own) == []
    assert own.restore(name, "--replace").returncode == 0
    assert own.client("t").count("c") == 30_000


@pytest.fixture
def limited_binary(gpu_server_binary: Path, tmp_path: Path) -> Path:
    """gpu-server that is told by an error, not by a signal, when a file may not grow."""
    path = tmp_path / "gpu-server"
    path.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec '{gpu_server_binary}' \"$@\"\n")
    path.chmod(0o755)
    return path


def test_a_full_disk_is_told_and_leaves_nothing(site: Callable[..., Site], limited_binary: Path) -> None:
    own = site("limited", limited_binary)
    try:
        client = own.client("t")
        fill(client, "c", 20_000, dimension=64)
        assert own.backup("before").returncode == 0
        client.upsert("c", ["later"], rows(1, 64))
        unlimited = resource.prlimit(own.server.pid, resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))
        refused = own.backup("full")
        told = 'collection "c" cannot be written: its disk is full, or at its quota'
        assert (refused.returncode, told in refused.stderr) == (CANNOT_CREATE, True), refused
        refused = own.restore("before", "--replace")
        assert (refused.returncode, told in refused.stderr) == (CANNOT_CREATE, True), refused
        resource.prlimit(own.server.pid, resource.RLIMIT_FSIZE, unlimited)
        assert [path.name for path in own.backups.iterdir()] == ["before"]
        assert [path.name for path in (own.data / "t").iterdir()] == ["c.redb"]
        assert client.fetch("c", ["later"]).ids == ["later"], "the collection is as it was"
        assert own.backup("full").returncode == 0
        assert own.restore("full", "--replace").returncode == 0
    finally:
        own.server.stop()


def test_damaged_collections_are_left_out_and_named(site: Callable[..., Site]) -> None:
    own = site("damaged")
    fill(own.client("t"), "well", 100)
    own.client("t").create_collection("hurt", 4)
    own.server.stop()
    whole = (own.data / "t" / "hurt.redb").read_bytes()
    (own.data / "t" / "hurt.redb").write_bytes(b"no database" + whole[11:])
    own.server.start()
    own = Site(own.server, own.binary, own.data, own.backups)
    done = own.backup("b")
    assert (done.returncode, "t/hurt" in done.stderr) == (DAMAGED, True)
    assert done.stdout.startswith("backed up: b, 1 collections, 100 points")
    assert own.backup("c", "--tenant", "t", "--collection", "hurt").returncode == DAMAGED
    assert own.restore("b", "--replace").returncode == 0


def test_commands_say_what_is_wrong_with_them(site: Callable[..., Site], gpu_server_binary: Path) -> None:
    own = site("told")

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **env}
        command = [str(gpu_server_binary), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    assert run("backup", "--to", "x").returncode == USAGE
    nobody = run("backup", "--admin", "http://127.0.0.1:1", "--to", "x")
    assert (nobody.returncode, "cannot be reached" in nobody.stderr) == (UNAVAILABLE, True)
    assert run("backup", "--admin", own.admin.replace("http:", "https:"), "--to", "x").returncode == USAGE
    assert run("restore", "--help").returncode == 0
    # What configures a server in the same container is nothing to a command.
    server = {"MEDKG_TLS_CERT": "/nowhere", "MEDKG_LISTEN": "nonsense", "MEDKG_BACKUP_ROOT": "/nowhere"}
    assert run("backup", "--admin", own.admin, "--to", "empty", **server).returncode == 0
    flags = run("--services", "gpu", "--backup-root", "/nowhere")
    assert (flags.returncode, "--admin-listen" in flags.stderr) == (USAGE, True)


def test_a_backup_needs_a_root(start_server: Callable[..., LocalServer], gpu_server_binary: Path) -> None:
    server = start_server(arguments=["--admin-listen", "127.0.0.1:0"], **ONLY_VECTOR)
    [line] = [line for line in server.events() if str(line.get("message")).startswith("operators are served")]
    command = [str(gpu_server_binary), "backup", "--admin", f"http://{line['address']}", "--to", "x"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "--backup-root" in refused.stderr) == (USAGE, True)


def test_an_operator_shows_a_certificate_where_the_server_wants_one(
    start_server: Callable[..., LocalServer], gpu_server_binary: Path, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.server()
    (tmp_path / "backups").mkdir()
    tls = ["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.certificate]
    listen = ["--admin-listen", "127.0.0.1:0", "--backup-root", tmp_path / "backups"]
    server = start_server(
        arguments=[str(part) for part in (*tls, *listen)], wait=False, data_dir=tmp_path / "data", **ONLY_VECTOR
    )
    eventually(lambda: any("collections ready" in str(line.get("message")) for line in server.events()))
    own, own_key = authority.client()
    site = Site(server, gpu_server_binary, tmp_path / "data", tmp_path / "backups")
    site.admin = site.admin.replace("http://", "https://")
    plain = ("--tls-ca", str(authority.certificate))
    assert site.backup("one", *plain).returncode == UNAVAILABLE
    shown = (*plain, "--tls-cert", str(own), "--tls-key", str(own_key))
    made = site.backup("one", *shown)
    assert made.returncode == 0, made.stderr
    assert [path.name for path in site.backups.iterdir()] == ["one"]
