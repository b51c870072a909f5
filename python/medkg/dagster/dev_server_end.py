"""Ends a gpu-server of development when nobody holds it any more: a program that `dev_server.py` starts for each one.

Who uses the server holds a shared lock on its file. The lock goes with its process, however that ends, so an exclusive
lock is granted here when all are gone. The file goes last: whoever waited for the lock sees by that, that the server is
gone too. It needs the standard library alone, and takes Python's shortest start.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_LONGEST_DRAIN: Final = 120.0


def end_when_unused(pid: int, path: str) -> None:
    """Waits until nobody holds the file at `path`, and ends the server `pid`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = os.pidfd_open(pid)
    users = os.open(path, os.O_RDWR)
    fcntl.flock(users, fcntl.LOCK_EX)
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(server, signal.SIGTERM)
        if not select.select([server], [], [], _LONGEST_DRAIN)[0]:
            signal.pidfd_send_signal(server, signal.SIGKILL)
    Path(path).unlink(missing_ok=True)


if __name__ == "__main__":
    end_when_unused(int(sys.argv[1]), sys.argv[2])
