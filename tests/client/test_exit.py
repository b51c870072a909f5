"""A process that has used medkg ends as it should."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medkg.local import LocalServer

SHORT = """
import asyncio, sys, medkg

async def ask():
    async with medkg.connect_async(address=sys.argv[1], tenant="exit") as services:
        return await services.gpu.status()

assert asyncio.run(ask()).active_device == "cpu"
"""


def test_the_end_right_after_an_awaited_answer_is_clean(server: LocalServer) -> None:
    # The thread that handed the answer over may still be inside the interpreter. Without the atexit hook about one of
    # twelve such processes aborted.
    command = [sys.executable, "-c", SHORT, server.address]
    ends = [subprocess.run(command, capture_output=True, timeout=60, check=False) for _ in range(30)]
    assert [(end.returncode, end.stderr) for end in ends if end.returncode != 0] == []
