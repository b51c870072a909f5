"""The receiving half of SMTP on the loopback, for e-mail alerts: plain, encrypted at once, or after STARTTLS."""

from __future__ import annotations

import socketserver
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Line: TypeAlias = Literal["none", "starttls", "tls"]


class Mailbox(socketserver.ThreadingTCPServer):
    """The receiving half of SMTP (RFC 5321, 3207 and 8314), with AUTH PLAIN accepted for any password."""

    daemon_threads = True

    def __init__(self, line: Line = "none", pair: tuple[Path, Path] | None = None) -> None:
        """Listens; `pair` is its certificate and key."""
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.line, self.mails, self.refuses = line, list[tuple[list[str], str]](), False
        self.port: int = self.server_address[1]
        self.read: list[str] = []
        """Every line that came in before the line was encrypted."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if pair is not None:
            self.context.load_cert_chain(*pair)


class _Smtp(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        with suppress(ssl.SSLError, ConnectionError):  # a client that does not trust the certificate leaves
            if self.server.line == "tls":
                self._encrypt()
            self._converse(encrypted=self.server.line == "tls")

    def _converse(self, *, encrypted: bool) -> None:
        self._say("220 ready")
        recipients: list[str] = []
        while line := self.rfile.readline().decode(errors="replace").strip():
            if not encrypted:
                self.server.read.append(line)
            verb = line.split()[0].upper()
            if verb == "EHLO":
                offers = self.server.line == "starttls" and not encrypted
                self._say("250-here", *["250-STARTTLS"] * offers, "250 AUTH PLAIN")
            elif verb == "STARTTLS" and self.server.line == "starttls":
                self._say("220 go on")
                self._encrypt()
                encrypted = True
            elif verb == "AUTH":
                self._say("535 no" if self.server.refuses else "235 ok")
            elif verb == "RCPT":
                recipients.append(line)
                self._say("250 ok")
            elif verb == "DATA":
                self._say("354 go on")
                self.server.mails.append((recipients, self._text()))
                self._say("250 ok")
            elif verb == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 ok")

    def _text(self) -> str:
        return "".join(iter(lambda: self.rfile.readline().decode(), ".\r\n"))

    def _encrypt(self) -> None:
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.setup()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()
        self.request.close()

    def _say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\r\n" for line in lines).encode())


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
