"""TLS between medkg's client and gpu-server: 1.3 only, both sides prove who they are."""

from __future__ import annotations

import socket
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest

import medkg

from .authority import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

ONLY_GPU = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None}


@pytest.fixture(scope="module")
def secured(authority: Authority, start_server: Callable[..., LocalServer]) -> str:
    """The address of a server that demands client certificates."""
    certificate, key = authority.issue("server")
    files = {"--tls-cert": certificate, "--tls-key": key, "--tls-client-ca": authority.certificate}
    server = start_server(**ONLY_GPU, arguments=[str(part) for pair in files.items() for part in pair])
    return server.address.replace("http://", "https://")


def connect(address: str, authority: Authority, identity: tuple[Path, Path] | None) -> medkg.Services:
    certificate, key = identity or (None, None)
    tls = medkg.TlsConfig(ca_file=authority.certificate, cert_file=certificate, key_file=key)
    return medkg.connect(address=address, tenant="tls", tls=tls, timeout=5, max_attempts=1)


def test_both_sides_prove_who_they_are(secured: str, authority: Authority) -> None:
    with connect(secured, authority, authority.issue("worker")) as services:
        assert services.gpu.status().active_device == "cpu"


def test_without_a_client_certificate_nothing_is_served(secured: str, authority: Authority) -> None:
    with connect(secured, authority, None) as services, pytest.raises(medkg.ServiceUnavailableError):
        services.gpu.status()


def test_a_certificate_of_another_authority_is_refused(secured: str, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger").issue("worker")
    with connect(secured, authority, stranger) as services, pytest.raises(medkg.ServiceUnavailableError):
        services.gpu.status()


def test_a_server_of_another_authority_is_not_trusted(secured: str, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    with (
        connect(secured, stranger, authority.issue("worker")) as services,
        pytest.raises(medkg.ServiceUnavailableError),
    ):
        services.gpu.status()


@pytest.mark.fault("TLS", "a client that speaks TLS 1.2 only", "refused in the handshake")
def test_tls_1_2_is_refused(secured: str, authority: Authority, seen: Callable[[str], None]) -> None:
    certificate, key = authority.issue("old")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    context.load_cert_chain(certificate, key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = secured.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises(ssl.SSLError) as refused:
        context.wrap_socket(plain, server_hostname="localhost")
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
    seen("alert protocol_version")


def test_plaintext_beyond_loopback_must_be_asked_for(gpu_server_binary: Path) -> None:
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", "0.0.0.0:0"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "--allow-plaintext" in outcome.stderr


def test_a_broken_identity_ends_the_start(gpu_server_binary: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    identity = ["--tls-cert", tmp_path / "empty.pem", "--tls-key", tmp_path / "empty.pem"]
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--listen", "127.0.0.1:0", *identity]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert outcome.returncode == 64
    assert "empty.pem" in outcome.stderr
