"""Debian's programs beside gpu-server, as `ops/dev/setup.sh services` fetches them: each test starts its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

DEBIAN = Path(os.environ.get("MEDKG_CACHE", Path.home() / ".cache" / "medkg")) / "debian" / "usr"


def program(name: str) -> str:
    """Its path; without it the test is skipped."""
    path = shutil.which(name) or shutil.which(name, path=f"{DEBIAN / 'bin'}{os.pathsep}{DEBIAN / 'sbin'}")
    if path is None:
        pytest.skip(f"{name} is not installed: run `ops/dev/setup.sh services`")
    return path


def environment() -> dict[str, str]:
    """With the libraries that came with the programs."""
    libraries = [str(folder) for folder in (DEBIAN / "lib").glob("*-linux-gnu*")]
    paths = os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return {**os.environ, "LD_LIBRARY_PATH": paths}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Redis:
    """A `redis-server` on the loopback, with nothing on disk; with a certificate and its key, over TLS alone."""

    def __init__(self, folder: Path, pair: tuple[Path, Path] | None = None) -> None:
        self.folder = folder
        self.pair = pair
        self.port = free_port()
        self.url = f"{'rediss' if pair else 'redis'}://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Waits until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        if self.pair is None:
            settings += ["--port", str(self.port)]
        else:
            certificate, key = map(str, self.pair)
            settings += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            settings += ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("redis-server"), *settings],
                stdout=log,
                stderr=log,
                env=environment(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                if self.call("PING") == b"+PONG\r\n":
                    return
            except OSError:
                pass
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def call(self, *words: str) -> bytes:
        """The answer to one command, as it is on the wire."""
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        with self._connected() as wire, wire.makefile("rb") as answer:
            wire.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return _reply(answer)

    def pause(self) -> None:
        """From now on it holds its connections and answers nothing."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Ends `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it; what it held is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def _connected(self) -> socket.socket:
        wire = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        if self.pair is None:
            return wire
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # the tests' own, on the loopback
        return trusting.wrap_socket(wire)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "it was not started"
        return self.process


class NameServer:
    """A `dnsmasq` on the loopback that knows what it is told and nothing else."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def serve(self, *records: str) -> None:
        """Serves `--host-record=...` and `--srv-host=...` from now on, and waits until it does; they hold for 1 s."""
        self.stop()
        settings = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local-ttl=1"]
        settings += ["--bind-interfaces", "--listen-address=127.0.0.1", f"--port={self.port}", "--pid-file="]
        settings += ["--user=", "--group=", "--local=/test/", "--host-record=ready.test,127.0.0.1"]
        self.process = subprocess.Popen([program("dnsmasq"), *settings, *records], env=environment())
        # A query for A of ready.test (RFC 1035, section 4).
        query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05ready\x04test\x00\x00\x01\x00\x01"
        deadline = time.monotonic() + 30
        with socket.socket(type=socket.SOCK_DGRAM) as wire:
            wire.settimeout(0.1)
            answer = b""
            while not answer:
                assert self.process.poll() is None, "dnsmasq has ended"
                assert time.monotonic() < deadline, "dnsmasq does not answer"
                wire.sendto(query, ("127.0.0.1", self.port))
                with suppress(OSError):
                    answer = wire.recv(512)

    def stop(self) -> None:
        """Ends it: nobody answers any more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


def _reply(answer: IO[bytes]) -> bytes:
    """One value of Redis' protocol (https://redis.io/docs/latest/develop/reference/protocol-spec/), unread."""
    line = answer.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("redis-server closed the connection")
    if line[:1] == b"$" and (length := int(line[1:])) >= 0:
        return line + answer.read(length + 2)
    if line[:1] == b"*":
        return line + b"".join(_reply(answer) for _ in range(int(line[1:])))
    return line
