"""A name server (RFC 1035, over UDP) that misbehaves, which dnsmasq cannot be told to (tests/services.py)."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import NamedTuple

A, SRV = 1, 33
REFUSAL = {"fails": 2, "denies": 3}


class Record(NamedTuple):
    """What a name has: `data` is on the wire as it stands."""

    kind: int
    data: bytes


def encoded(name: str) -> bytes:
    """A name as its labels."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


class OddNameServer:
    """Knows `name`, which leads to servers on this machine by SRV records; it runs in a thread.

    `mood` is what it does with questions: `answers`, `fails` (SERVFAIL), `denies` (NXDOMAIN), `empty` (no records),
    `garbage` (noise) or `silent`.
    """

    def __init__(self, name: str, ttl: int = 1) -> None:
        self.name, self.ttl = name, ttl
        self.mood = "answers"
        self.asked = 0
        """Questions for the name's servers."""
        self._records: dict[str, list[Record]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def lead_to(self, addresses: list[str]) -> None:
        """From now on the name leads there: `http://127.0.0.1:PORT`."""
        services = []
        records = {}
        for number, address in enumerate(addresses):
            host = f"server-{number}.{self.name.partition('.')[2]}"
            port = int(address.rpartition(":")[2])
            services.append(Record(SRV, struct.pack("!HHH", 1, 1, port) + encoded(host)))
            records[host] = [Record(A, socket.inet_aton("127.0.0.1"))]
        self._records = {self.name: services, **records}

    def stop(self) -> None:
        """Ends it."""
        self._over = True
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(30)
        self._socket.close()

    def _serve(self) -> None:
        while not self._over:
            question, peer = self._socket.recvfrom(4096)
            if len(question) > 12 and (answer := self._answer(question)):
                self._socket.sendto(answer, peer)

    def _answer(self, message: bytes) -> bytes | None:
        labels, place = [], 12
        while size := message[place]:
            labels.append(message[place + 1 : place + 1 + size].decode())
            place += size + 1
        question = message[12 : place + 5]
        (kind,) = struct.unpack("!H", message[place + 1 : place + 3])
        name = ".".join(labels).lower()
        self.asked += name == self.name
        if self.mood == "silent":
            return None
        if self.mood == "garbage":
            return message[:2] + os.urandom(40)
        known = self._records.get(name, [])
        found = [record for record in known if record.kind == kind] if self.mood == "answers" else []
        code = REFUSAL.get(self.mood, 0 if known else REFUSAL["denies"])
        header = message[:2] + struct.pack("!HHHHH", 0x8580 | code, 1, len(found), 0, 0)
        # 0xC00C points to the name in the question.
        answers = (
            b"\xc0\x0c" + struct.pack("!HHIH", record.kind, 1, self.ttl, len(record.data)) + record.data
            for record in found
        )
        return header + question + b"".join(answers)
