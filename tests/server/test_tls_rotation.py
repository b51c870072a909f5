"""Certificates and their authority are exchanged by `medkg certs` while calls run; the files are those in use."""

from __future__ import annotations

import shutil
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import medkg

from .authority import Authority, Pair
from .operators import eventually
from .test_tls import ONLY_GPU, connect
from .test_tls_sockets import context, greet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from medkg.local import LocalServer

CALLERS = 4
CHANGED = "TLS files have changed: new connections use them"
UNUSABLE = "TLS files have changed and cannot be used; the ones before stay in use"


class Load:
    """Clients that call without a pause, each with one attempt, so that a call that fails is seen."""

    def __init__(self, server: LocalServer, authority: Authority, identity: Pair) -> None:
        self.server, self.authority, self.identity = server, authority, identity
        self.calls, self.stop = [0] * CALLERS, threading.Event()

    def work(self, number: int) -> None:
        with connect(https(self.server), self.authority, self.identity) as services:
            while not self.stop.is_set():
                assert services.gpu.status().active_device == "cpu"
                self.calls[number] += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """A call that failed ends it with its error."""
        with ThreadPoolExecutor(CALLERS) as pool:
            working = [pool.submit(self.work, number) for number in range(CALLERS)]
            try:
                eventually(lambda: all(self.calls) or any(future.done() for future in working))
                yield
            finally:
                self.stop.set()
            for future in working:
                future.result()

    def lives_on(self, message: str = CHANGED, since: int = 0) -> int:
        """The server has said so again, and callers have made connections since: those live for a second."""
        eventually(lambda: self.said(message) > since)
        before, deadline = list(self.calls), time.monotonic() + 3
        eventually(lambda: time.monotonic() > deadline and all(n > b for n, b in zip(self.calls, before, strict=True)))
        return self.said(message)

    def said(self, message: str) -> int:
        return sum(line.get("message") == message for line in self.server.events())


def https(server: LocalServer) -> str:
    return server.address.replace("http://", "https://")


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    """An authority for this test alone."""
    return Authority(tmp_path, "rotated")


@pytest.fixture
def load(own: Authority, start_server: Callable[..., LocalServer]) -> Load:
    server = start_server(**ONLY_GPU, arguments=[*own.flags(), "--connection-age", "1"])
    return Load(server, own, own.client())


def shown(load: Load) -> str:
    """The certificate that the server shows now."""
    with greet(load.server, context(load.authority, load.identity)) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True) or b"")


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "every certificate is renewed under load", "no call fails; new connections show the new ones")
def test_no_call_fails_while_every_certificate_is_renewed(load: Load, seen: Callable[[str], None]) -> None:
    [certificate] = load.authority.folder.glob("server-*.pem")
    before, heard = certificate.read_text(), 0
    assert shown(load).split() == before.split()
    with load.running():
        for _ in range(3):
            load.authority.run("rotate", "--days", 398)
            heard = load.lives_on(since=heard)
            assert before.split() != certificate.read_text().split() == shown(load).split()
            before = certificate.read_text()
    seen(f"3 rotations of 2 certificates under {CALLERS} callers; no call failed")


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "the authority is exchanged under load", "no call fails; what the old one signed ends")
def test_no_call_fails_while_the_authority_is_exchanged(
    load: Load, tmp_path: Path, seen: Callable[[str], None]
) -> None:
    own, heard = load.authority, 0
    late = tuple(shutil.copy(path, tmp_path / f"late{path.suffix}") for path in own.client())
    with load.running():
        for step in ("add", "use", "drop"):
            own.run("rotate", "--ca", step)
            heard = load.lives_on(since=heard)
    certificate, key = late
    tls = medkg.TlsConfig(ca_file=own.certificate, cert_file=certificate, key_file=key)
    with (
        medkg.connect(address=https(load.server), tenant="tls", tls=tls, timeout=20, max_attempts=1) as services,
        pytest.raises(medkg.ServiceUnavailableError),
    ):
        services.gpu.status()
    seen(f"add, use and drop under {CALLERS} callers; no call failed; a certificate of before is refused")


@pytest.mark.fault("TLS", "a key that is not the certificate's is put in its place", "the pair of before stays in use")
def test_files_that_do_not_belong_together_change_nothing(
    load: Load, own: Authority, seen: Callable[[str], None]
) -> None:
    [key] = own.folder.glob("server-*.key")
    right, before = key.read_bytes(), shown(load)
    _, wrong = own.client()

    def put(content: bytes) -> None:
        new = key.with_name("new")
        new.write_bytes(content)
        new.rename(key)

    with load.running():
        put(wrong.read_bytes())
        load.lives_on(UNUSABLE)
        assert shown(load) == before
        put(right)
        load.lives_on()
    seen("it is told in the log; no call failed")
