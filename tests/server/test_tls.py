"""TLS between medkg's client and gpu-server: both sides prove who they are, and nobody else gets in."""

from __future__ import annotations

import subprocess
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import medkg

from .authority import Authority, Pair, forge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

ONLY_GPU = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None}
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def server(authority: Authority, start_server: Callable[..., LocalServer]) -> LocalServer:
    """It demands client certificates."""
    return start_server(**ONLY_GPU, arguments=authority.flags())


@pytest.fixture(scope="module")
def secured(server: LocalServer) -> str:
    """Its address."""
    return server.address.replace("http://", "https://")


def connect(address: str, authority: Authority, identity: Pair | None, **options: object) -> medkg.Services:
    certificate, key = identity or (None, None)
    tls = medkg.TlsConfig(ca_file=authority.certificate, cert_file=certificate, key_file=key)
    fields = {"tenant": "tls", "timeout": 20, "max_attempts": 1, **options}
    return medkg.connect(address=address, tls=tls, **fields)


def refused(address: str, authority: Authority, identity: Pair | None) -> medkg.ServiceUnavailableError:
    """How a call ends that must not get through."""
    with (
        connect(address, authority, identity) as services,
        pytest.raises(medkg.ServiceUnavailableError) as caught,
    ):
        services.gpu.status()
    return caught.value


def told(server: LocalServer, fits: Callable[[str], bool]) -> str:
    """Why the server let the last one down that it did; its log may come after the client's error."""
    deadline = time.monotonic() + 30
    while True:
        lines = [line for line in server.events() if line.get("message") == "TLS handshake refused"]
        if lines and fits(str(lines[-1]["error"])):
            return str(lines[-1]["error"])
        assert time.monotonic() < deadline, lines[-1:]
        time.sleep(0.02)


@pytest.mark.requirement("isolation 12.1")
def test_both_sides_prove_who_they_are(secured: str, authority: Authority) -> None:
    with connect(secured, authority, authority.client()) as services:
        assert services.gpu.status().active_device == "cpu"


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "a client without a certificate", "it is refused, as a fault of the network that says why")
def test_without_a_client_certificate_nothing_is_served(
    server: LocalServer, secured: str, authority: Authority, seen: Callable[[str], None]
) -> None:
    error = refused(secured, authority, None)
    why = told(server, lambda why: why == "peer sent no certificates")
    seen(f"{type(error).__name__}; the server: {why}")


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "a client with a certificate of another authority", "it is refused")
def test_a_certificate_of_another_authority_is_refused(
    server: LocalServer, secured: str, authority: Authority, tmp_path: Path, seen: Callable[[str], None]
) -> None:
    error = refused(secured, authority, Authority(tmp_path, "stranger").client())
    why = told(server, lambda why: why == "invalid peer certificate: UnknownIssuer")
    seen(f"{type(error).__name__}; the server: {why}")


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "a client that shows a server's certificate", "it is refused: the use does not fit")
def test_a_servers_certificate_is_no_clients(
    server: LocalServer, secured: str, authority: Authority, seen: Callable[[str], None]
) -> None:
    error = refused(secured, authority, authority.server())
    why = told(server, lambda why: "InvalidPurpose" in why.replace(" ", "") or "usage" in why.lower())
    seen(f"{type(error).__name__}; the server: {why}")


@pytest.mark.requirement("isolation 12.1")
@pytest.mark.fault("TLS", "a server of another authority", "the client sends it nothing")
def test_a_server_of_another_authority_is_not_trusted(
    secured: str, authority: Authority, tmp_path: Path, seen: Callable[[str], None]
) -> None:
    error = refused(secured, Authority(tmp_path, "stranger"), authority.client())
    assert "UnknownIssuer" in str(error)
    seen(f"{type(error).__name__}: invalid peer certificate: UnknownIssuer")


@pytest.mark.fault("TLS", "a server whose certificate is another host's", "the client sends it nothing")
def test_the_name_in_the_certificate_counts(
    authority: Authority, start_server: Callable[..., LocalServer], seen: Callable[[str], None]
) -> None:
    elsewhere = forge(authority, "elsewhere", names="DNS:gpu.example.org")
    server = start_server(**ONLY_GPU, arguments=["--tls-cert", str(elsewhere[0]), "--tls-key", str(elsewhere[1])])
    address = server.address.replace("http://", "https://")
    error = refused(address, authority, None)
    assert "not valid for name" in str(error)
    tls = medkg.TlsConfig(ca_file=authority.certificate, server_name="gpu.example.org")
    with medkg.connect(address=address, tenant="tls", tls=tls, timeout=20) as services:
        assert services.gpu.status().active_device == "cpu"
    seen(f"{type(error).__name__}: certificate not valid for name; with server_name it is trusted")


@pytest.mark.fault("TLS", "files with an expired certificate", "neither server nor client starts with them")
def test_an_expired_certificate_is_not_loaded(
    authority: Authority, gpu_server_binary: Path, seen: Callable[[str], None], tmp_path: Path
) -> None:
    certificate, key = forge(authority, "expired", lasts=(-3 * HOUR, -HOUR))
    identity = ["--tls-cert", certificate, "--tls-key", key]
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", "127.0.0.1:0", *identity]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "expired.pem: certificate 0 (CN=expired) expired at" in outcome.stderr
    with (
        connect("https://127.0.0.1:1", authority, (certificate, key)) as services,
        pytest.raises(medkg.MedkgError, match="expired at") as caught,
    ):
        services.gpu.status()
    seen(f"the server exits with 64, the client raises {type(caught.value).__name__}; both name the file")


@pytest.mark.fault("TLS", "an identity that is no PEM file", "the server does not start, and names the file")
def test_a_broken_identity_ends_the_start(gpu_server_binary: Path, tmp_path: Path, seen: Callable[[str], None]) -> None:
    (tmp_path / "empty.pem").write_text("")
    identity = ["--tls-cert", tmp_path / "empty.pem", "--tls-key", tmp_path / "empty.pem"]
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", "127.0.0.1:0", *identity]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "empty.pem" in outcome.stderr
    seen("exit status 64")


@pytest.mark.fault("TLS", "a server is to speak plaintext to other machines", "it starts only if told so")
def test_plaintext_beyond_loopback_must_be_asked_for(gpu_server_binary: Path, seen: Callable[[str], None]) -> None:
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", "0.0.0.0:0"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "--allow-plaintext" in outcome.stderr
    seen("exit status 64 without --allow-plaintext")
