"""A network in which packets come late, get lost or vanish, in a network namespace of its own.

`Link` is a TUN device whose far end is this process: a packet to 127.77.0.N comes back as one from 127.77.0.N to
127.0.0.1, if and when the link lets it through. Two programs on this machine that use such an address speak TCP as over
a bad line: the kernel's retransmissions, timeouts and reordering are real. Sums over the addresses stay right, because
they only change places.

Only inside `unshare --net` (see `NAMESPACE`): nothing outside the namespace is touched, and it goes with its last
process. Addresses of the loopback network are taken because servers and clients speak plaintext there unasked.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
NAME = "tun0"
NAMESPACE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
"""Starts a command in a network of its own."""


class Link:
    """The line to 127.77.0.0/24; perfect at first."""

    def __init__(self) -> None:
        self.delay = 0.0
        """Seconds that a packet takes, each way."""
        self.jitter = 0.0
        """Seconds by which that varies, up and down."""
        self.loss = 0.0
        """The share of packets that get lost."""
        self.swallowed: frozenset[str] = frozenset()
        """Addresses to and from which nothing comes through."""
        self.lost = 0
        """Packets that did not come through."""
        self._device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._device, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), IFF_TUN | IFF_NO_PI))
        for command in (
            "link set lo up",
            f"link set {NAME} up",
            "route del local 127.0.0.0/8 dev lo table local",
            f"route add 127.77.0.0/24 dev {NAME} src 127.0.0.1",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        # Without it the kernel takes such packets of any device but lo for forged.
        Path(f"/proc/sys/net/ipv4/conf/{NAME}/route_localnet").write_text("1")
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self) -> None:
        under_way: list[tuple[float, int, bytes]] = []
        number = 0
        while True:
            wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
            if select.select([self._device], [], [], wait)[0]:
                packet = os.read(self._device, 65536)
                if packet[0] >> 4 != 4:
                    continue
                there = ".".join(map(str, packet[16:20]))
                if there in self.swallowed or random.random() < self.loss:
                    self.lost += 1
                    continue
                number += 1
                due = time.monotonic() + self.delay + random.uniform(-self.jitter, self.jitter)
                back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                heapq.heappush(under_way, (due, number, back))
            while under_way and under_way[0][0] <= time.monotonic():
                os.write(self._device, heapq.heappop(under_way)[2])
