"""What strangers do to a TLS port: plaintext, old protocols, silence, certificates that expire. Others are served."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

import medkg

from .authority import Authority, Pair, forge
from .operators import eventually
from .test_tls import ONLY_GPU, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What gpu-server does at once; more wait in the kernel's queue.
HANDSHAKES = 256


@pytest.fixture(scope="module")
def server(authority: Authority, start_server: Callable[..., LocalServer]) -> LocalServer:
    """It demands client certificates; connections live for a second."""
    return start_server(**ONLY_GPU, arguments=[*authority.flags(), "--connection-age", "1"])


@pytest.fixture
def served(server: LocalServer, authority: Authority) -> Iterator[Callable[[], None]]:
    """Tells that another client, over a connection of its own, gets its answer."""

    def check() -> None:
        with connect(server.address.replace("http://", "https://"), authority, identity) as services:
            assert services.gpu.status().active_device == "cpu"

    identity = authority.client()
    check()
    yield check
    check()


def dial(server: LocalServer) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def context(authority: Authority, identity: Pair | None) -> ssl.SSLContext:
    """Another TLS library than the server's, with HTTP/2."""
    made = ssl.create_default_context(cafile=str(authority.certificate))
    made.set_alpn_protocols(["h2"])
    if identity:
        made.load_cert_chain(*identity)
    return made


def greet(server: LocalServer, tls: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A connection on which the server has begun to speak HTTP/2: it has let this client in."""
    connection = tls.wrap_socket(dial(server), server_hostname="localhost", session=session)
    try:
        assert connection.recv(9)[3] == 4, "a SETTINGS frame comes first"
    except BaseException:
        connection.close()
        raise
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(4096):
            received += part
    return received


@pytest.mark.fault("TLS", "a client that speaks TLS 1.2 only", "it is refused in the handshake")
def test_tls_1_2_is_refused(server: LocalServer, authority: Authority, seen: Callable[[str], None]) -> None:
    old = context(authority, authority.client())
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with dial(server) as plain, pytest.raises(ssl.SSLError) as refused:
        old.wrap_socket(plain, server_hostname="localhost")
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
    # The same client gets in with 1.3: it was the version.
    with greet(server, context(authority, authority.client())) as new:
        assert new.version() == "TLSv1.3"
    seen("alert protocol_version")


@pytest.mark.fault("TLS", "plaintext HTTP/2 to the TLS port", "the connection is closed; others are served")
def test_plaintext_to_the_tls_port_gets_nothing(
    server: LocalServer, served: Callable[[], None], seen: Callable[[str], None]
) -> None:
    with dial(server) as plain:
        plain.sendall(PREFACE)
        answer = rest(plain)
    # An alert, which is a record of type 21, or nothing.
    assert not answer or answer[0] == 21
    assert len(answer) <= 7
    with (
        medkg.connect(address=server.address, tenant="tls", timeout=20, max_attempts=1) as services,
        pytest.raises(medkg.ServiceUnavailableError),
    ):
        services.gpu.status()
    served()
    seen("an alert and the end; ServiceUnavailableError in medkg's client")


@pytest.mark.fault("TLS", "TLS to a plaintext port", "the client says that the handshake failed")
def test_tls_to_a_plaintext_port_is_told(
    authority: Authority, start_server: Callable[..., LocalServer], seen: Callable[[str], None]
) -> None:
    plain = start_server(**ONLY_GPU)
    address = plain.address.replace("http://", "https://")
    with (
        connect(address, authority, authority.client()) as services,
        pytest.raises(medkg.ServiceUnavailableError, match="TLS handshake failed") as caught,
    ):
        services.gpu.status()
    with medkg.connect(address=plain.address, tenant="tls", timeout=20) as services:
        assert services.gpu.status().active_device == "cpu"
    seen(f"{type(caught.value).__name__}: TLS handshake failed")


@pytest.mark.fault("TLS", "garbage on the TLS port", "the connection is closed; others are served")
def test_garbage_on_the_port_is_closed(
    server: LocalServer, served: Callable[[], None], seen: Callable[[str], None]
) -> None:
    junk = [b"\x00" * 64, b"\xff" * 20_000, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x40\x01" + b"x" * 20_000]
    for piece in junk:
        with dial(server) as plain:
            # It may be closed before all is sent.
            with suppress(OSError):
                plain.sendall(piece)
                plain.shutdown(socket.SHUT_WR)
            assert len(rest(plain)) <= 7
    served()
    seen(f"{len(junk)} kinds of it: an alert at most, and the end")


@pytest.mark.fault(
    "TLS", "more silent connections than handshakes at once", "each ends after the handshake's time; others get in then"
)
def test_silence_holds_nobody_up_for_longer_than_a_handshake_may_take(
    server: LocalServer, authority: Authority, seen: Callable[[str], None]
) -> None:
    identity = authority.client()
    address = server.address.replace("http://", "https://")

    def answered() -> bool:
        with connect(address, authority, identity, timeout=60, connect_timeout=60) as services:
            return services.gpu.status().active_device == "cpu"

    with ExitStack() as stack:
        # A few less than it takes at once: nobody waits at all.
        silent = [stack.enter_context(dial(server)) for _ in range(HANDSHAKES - 8)]
        assert answered()
        silent += [stack.enter_context(dial(server)) for _ in range(16)]
        assert answered()
        eventually(lambda: len(told(server)) >= len(silent))
        for connection in silent:
            assert rest(connection) == b""
    seen(f"{len(silent)} are closed without a word")


def told(server: LocalServer) -> list[dict[str, object]]:
    return [line for line in server.events() if line.get("message") == "TLS handshake not finished in time"]


@pytest.fixture
def brief(authority: Authority) -> tuple[Pair, Callable[[], None]]:
    """A client's certificate that is valid for a few seconds, and what waits for its end."""
    end = datetime.now(timezone.utc) + timedelta(seconds=8)
    lasts = (timedelta(minutes=-1), end - datetime.now(timezone.utc))
    pair = forge(authority, f"brief-{token_hex(4)}", lasts=lasts)
    return pair, lambda: eventually(lambda: datetime.now(timezone.utc) > end + timedelta(seconds=1))


@pytest.mark.fault("TLS", "a session from before the certificate expired is resumed", "there is none to resume")
def test_an_expired_certificate_does_not_come_back_by_resumption(
    server: LocalServer,
    authority: Authority,
    brief: tuple[Pair, Callable[[], None]],
    served: Callable[[], None],
    seen: Callable[[str], None],
) -> None:
    identity, expired = brief
    tls = context(authority, identity)
    with greet(server, tls) as first:
        session = first.session
        assert session is None or not session.has_ticket
    with greet(server, tls, session) as second:
        assert second.session_reused is False
    expired()
    with pytest.raises(ssl.SSLError) as refused:
        greet(server, tls, session)
    assert refused.value.reason == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    served()
    seen("no ticket; a full handshake each time; alert certificate_expired afterwards")


@pytest.mark.fault(
    "TLS", "a client's certificate expires while its connection is open", "it ends with the connection's age"
)
def test_an_open_connection_does_not_keep_an_expired_certificate_alive(
    server: LocalServer,
    authority: Authority,
    brief: tuple[Pair, Callable[[], None]],
    served: Callable[[], None],
    seen: Callable[[str], None],
) -> None:
    identity, expired = brief

    def ended() -> bool:
        try:
            services.gpu.status()
        except medkg.ServiceUnavailableError:
            return True
        return False

    with connect(server.address.replace("http://", "https://"), authority, identity) as services:
        assert services.gpu.status().active_device == "cpu"
        expired()
        eventually(ended)
    refusals = [line["error"] for line in server.events() if line.get("message") == "TLS handshake refused"]
    assert "expired" in str(refusals[-1]).lower()
    served()
    seen("ServiceUnavailableError; the server: certificate expired")
