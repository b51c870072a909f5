"""One fault after the other, chosen at random, for a minute."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from .load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    import medkg

    from .conftest import Member
    from .wire import Proxy


@pytest.mark.slow
@pytest.mark.fault(
    "Servers",
    "for a minute one of three servers after the other is killed, stopped, restarted, reset, slowed or cut off",
    "at most 0.1 % of the calls fail; afterwards all three answer",
)
@pytest.mark.timeout(600)
def test_one_fault_after_the_other(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    members = fleet(3)
    wires = [proxy(member.server.address) for member in members]
    seed = int.from_bytes(os.urandom(4), "little")
    dice = random.Random(seed)

    def killed(one: int) -> None:
        members[one].server.kill()
        load.wait_for(200)
        members[one].server.start()

    def restarted(one: int) -> None:
        assert members[one].server.stop() == 0
        load.wait_for(200)
        members[one].server.start()

    def stopped(one: int) -> None:
        os.kill(members[one].server.pid, signal.SIGSTOP)
        try:
            load.wait_for(500)
        finally:
            os.kill(members[one].server.pid, signal.SIGCONT)

    def was_reset(one: int) -> None:
        wires[one].reset()

    def slowed(one: int) -> None:
        wires[one].trickle(100, 0.05)
        load.wait_for(300)
        wires[one].flow()

    def cut_off(one: int) -> None:
        wires[one].go_down()
        load.wait_for(500)
        wires[one].come_back()

    faults = [killed, restarted, stopped, was_reset, slowed, cut_off]
    done = []
    with Load(client([wire.address for wire in wires], breaker_cooldown=0.5, timeout=60), 8) as load:
        load.wait_for(200)
        over = time.monotonic() + 60
        while time.monotonic() < over:
            fault, one = dice.choice(faults), dice.randrange(3)
            done.append(f"{fault.__name__} {one}")
            fault(one)
            load.wait_for(100)
            if fault in {killed, restarted, cut_off}:
                # Two in trouble at once are another test.
                load.wait_for(10, lambda call, one=one: call.digest == members[one].digest)
        for member in members:
            load.wait_for(10, lambda call, member=member: call.digest == member.digest)
    failed = load.errors()
    assert len(failed) <= len(load.calls) * 0.001, (seed, done, len(load.calls), failed[:5])
    seen("no call failed" if not failed else "calls failed, 0.1 % at most")
