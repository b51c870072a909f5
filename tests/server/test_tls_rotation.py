"""Certificates and their authority are exchanged while calls run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import medkg

from .authority import Authority
from .operators import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

CALLERS = 4


class Mounted:
    """A folder of files that are renamed over, as a secret that is mounted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.trusted = folder, folder / "ca.pem"

    def put(self, name: str, content: bytes) -> Path:
        (self.folder / "new").write_bytes(content)
        return (self.folder / "new").rename(self.folder / name)

    def identify(self, name: str, authority: Authority) -> tuple[Path, Path]:
        certificate, key = authority.issue(name)
        return self.put(f"{name}.pem", certificate.read_bytes()), self.put(f"{name}.key", key.read_bytes())


def test_no_call_fails_while_a_server_and_its_callers_move_to_another_authority(
    authority: Authority, start_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    old, new = authority, Authority(tmp_path, "new")
    mounted = Mounted(tmp_path / "mounted")
    trusted = mounted.put("ca.pem", old.certificate.read_bytes())
    files = zip(
        ("--tls-cert", "--tls-key", "--tls-client-ca"), (*mounted.identify("server", old), trusted), strict=True
    )
    arguments = [*(str(part) for pair in files for part in pair), "--connection-age", "1"]
    server = start_server(
        services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None, arguments=arguments
    )
    address = server.address.replace("http://", "https://")
    certificate, key = mounted.identify("worker", old)
    tls = medkg.TlsConfig(ca_file=trusted, cert_file=certificate, key_file=key)
    calls, reads, stop = [0] * CALLERS, 0, threading.Event()

    def work(number: int) -> None:
        # One attempt: a call that fails is seen.
        with medkg.connect(address=address, tenant="tls", tls=tls, timeout=20, max_attempts=1) as services:
            while not stop.is_set():
                assert services.gpu.status().active_device == "cpu"
                calls[number] += 1

    def lives_on() -> None:
        """The server has read its files again, and callers have made connections since: those live for a second."""
        nonlocal reads
        told = "TLS files have changed: new connections use them"
        eventually(lambda: sum(line.get("message") == told for line in server.events()) > reads)
        reads = sum(line.get("message") == told for line in server.events())
        before, deadline = list(calls), time.monotonic() + 3
        eventually(lambda: time.monotonic() > deadline and all(n > b for n, b in zip(calls, before, strict=True)))

    with ThreadPoolExecutor(CALLERS) as pool:
        working = [pool.submit(work, number) for number in range(CALLERS)]
        try:
            eventually(lambda: all(calls))
            # As an operator does it: both authorities are trusted, then the identities change, then the old one goes.
            mounted.put("ca.pem", old.certificate.read_bytes() + new.certificate.read_bytes())
            lives_on()
            mounted.identify("server", new)
            mounted.identify("worker", new)
            lives_on()
            mounted.put("ca.pem", new.certificate.read_bytes())
            lives_on()
        finally:
            stop.set()
        for future in working:
            future.result()
    certificate, key = old.issue("late")
    late = medkg.TlsConfig(ca_file=new.certificate, cert_file=certificate, key_file=key)
    with (
        medkg.connect(address=address, tenant="tls", tls=late, timeout=5, max_attempts=1) as services,
        pytest.raises(medkg.ServiceUnavailableError),
    ):
        services.gpu.status()
