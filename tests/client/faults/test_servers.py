"""One server of three, or all of them, in trouble while callers work."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import medkg

from .load import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Member
    from .wire import Proxy

SLICE = 0.25


def addresses(members: list[Member]) -> list[str]:
    return [member.server.address for member in members]


def recovery(load: Load, since: float, usual: float) -> float:
    """Seconds until the 99th percentile was back at no more than twice the usual."""
    deadline, begun = time.monotonic() + 60, since
    while True:
        assert time.monotonic() < deadline, "the slowest calls stay slow"
        time.sleep(max(begun + SLICE - time.monotonic(), 0))
        slowest = load.slowest(begun, begun + SLICE)
        if slowest is not None and slowest <= 2 * usual:
            return begun - since
        begun += SLICE


@pytest.mark.requirement("isolation 6.1")
@pytest.mark.fault(
    "Servers",
    "one of three servers is killed under load",
    "at most 0.1 % of the calls fail; the 99th percentile of their times is back within 2 s",
)
def test_one_of_three_is_killed(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    members = fleet(3)
    with Load(client(addresses(members))) as load:
        load.wait_for(1000)
        begun = time.monotonic()
        load.wait_for(1000)
        slices = int((time.monotonic() - begun) / SLICE)
        usual = max(load.slowest(begun + n * SLICE, begun + (n + 1) * SLICE) or 0 for n in range(max(slices, 1)))
        members[0].server.kill()
        killed = time.monotonic()
        took = recovery(load, killed, usual)
        load.wait_for(1000)
    failed = len(load.errors())
    assert failed <= len(load.calls) * 0.001, load.errors()[:3]
    assert {call.digest for call in load.calls[-500:]} == {member.digest for member in members[1:]}
    seen("no call failed" if failed == 0 else "calls failed, 0.1 % at most")
    seen("the 99th percentile was back within " + ("2 s" if took <= 2 else "10 s" if took <= 10 else "a minute"))


@pytest.mark.fault(
    "Servers",
    "one of three servers stops for a while under load, and goes on (SIGSTOP, SIGCONT)",
    "the others take the calls meanwhile; none fails; afterwards it takes calls again",
)
def test_one_of_three_stands_still(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    members = fleet(3)
    still = members[1]
    with Load(client(addresses(members))) as load:
        load.wait_for(500)
        os.kill(still.server.pid, signal.SIGSTOP)
        try:
            load.wait_for(1000)
        finally:
            os.kill(still.server.pid, signal.SIGCONT)
        load.wait_for(50, lambda call: call.digest == still.digest)
    assert load.errors() == []
    seen("no call failed; it answers again")


@pytest.mark.fault(
    "Servers",
    "one of three servers stops under load for longer than calls may take (SIGSTOP)",
    "calls that wait there are made elsewhere while they have time; none fails",
)
def test_one_of_three_stands_still_for_long(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    members = fleet(3)
    still = members[0]
    timeout = 3
    through = client(addresses(members), timeout=timeout, breaker_cooldown=0.5)
    with Load(through) as load:
        load.wait_for(200)
        os.kill(still.server.pid, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            while time.monotonic() < stopped + timeout + 1:
                load.wait_for(50)
        finally:
            os.kill(still.server.pid, signal.SIGCONT)
    assert load.errors() == []
    seen(f"{timeout + 1} s, calls of {timeout} s: no call failed")


@pytest.mark.fault(
    "Servers",
    "two servers are so busy that calls wait for long",
    "they are waited for: no call is made twice",
)
def test_busy_servers_are_waited_for(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    through = client(addresses(fleet(2, alike=True)), timeout=60)
    texts = ["word " * 60] * 128
    through.embed(texts)
    begun = time.monotonic()
    through.embed(texts)
    # So many that the last ones wait for some six seconds: a silent server is waited for four.
    calls = min(int(2 * 6 / (time.monotonic() - begun)), 800)
    with ThreadPoolExecutor(calls) as pool:
        results = list(pool.map(lambda _: through.embed(texts), range(calls)))
    assert sum(result.usage.retries for result in results) == 0
    assert [endpoint.last_failure for endpoint in through.endpoints()] == [None, None]
    seen("calls waited for several seconds; none was made twice")


@pytest.mark.fault(
    "Servers",
    "one of three servers is told to end under load (SIGTERM), and is started again",
    "it finishes what it has begun; no call fails; afterwards it takes calls again",
)
def test_one_of_three_is_restarted(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    members = fleet(3)
    restarted = members[2]
    with Load(client(addresses(members), breaker_cooldown=0.5)) as load:
        load.wait_for(500)
        assert restarted.server.stop() == 0
        load.wait_for(500)
        restarted.server.start()
        load.wait_for(50, lambda call: call.digest == restarted.digest)
    assert load.errors() == []
    seen("no call failed; exit status 0; it answers again")


@pytest.mark.fault(
    "Servers",
    "one of three servers listens under load while it still loads its models",
    "it gets no calls, or they are answered by the others; none fails; it takes calls once it is ready",
)
def test_one_of_three_loads_its_models(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    minilm_dir: Path,
    seen: Callable[[str], None],
) -> None:
    # They take their time.
    first = {f"first-{number}": minilm_dir for number in range(3)}
    members = [*fleet(2), *fleet(1, first=first)]
    loading = members[2]
    through = client(addresses(members))
    with Load(through) as load:
        load.wait_for(200)
        loading.server.kill()
        load.wait_for(200)
        loading.server.start()
        # As if nobody knew of the crash: it may be asked from the first moment.
        through.reset_breakers()
        load.wait_for(50, lambda call: call.digest == loading.digest)
    assert load.errors() == []
    seen("no call failed; it answers when it is ready")


@pytest.mark.requirement("isolation 5.4")
@pytest.mark.fault(
    "Servers",
    "all servers go down under load, and come back",
    "calls fail at once meanwhile; an address is tried by one call at a time; all are answered afterwards",
)
def test_all_go_down_and_come_back(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    proxies = [proxy(address) for address in addresses(fleet(2))]
    settings: dict[str, Any] = {"breaker_failures": 3, "breaker_cooldown": 0.25, "timeout": 60}
    callers = 24
    with Load(client([one.address for one in proxies], **settings), callers) as load:
        load.wait_for(200)
        for one in proxies:
            one.go_down()
        load.wait_for(callers, lambda call: isinstance(call.error, medkg.CircuitOpenError))
        before = [one.accepted for one in proxies]
        begun = time.monotonic()
        for one in proxies:
            one.most_knocking = 0
        load.wait_for(3 * callers, lambda call: isinstance(call.error, medkg.CircuitOpenError))
        probes = [one.accepted - count for one, count in zip(proxies, before, strict=True)]
        cooldowns = (time.monotonic() - begun) / settings["breaker_cooldown"]
        assert max(one.most_knocking for one in proxies) <= 1
        assert max(probes) <= cooldowns + 2
        for one in proxies:
            one.come_back()
        load.wait_for(200)
        back = [one.accepted for one in proxies]
        load.wait_for(200)
    assert {type(error) for error in load.errors()} <= {medkg.ServiceUnavailableError, medkg.CircuitOpenError}
    assert all(call.error is None for call in load.calls[-100:])
    assert max(back) - max(before) < callers, "a herd of connections"
    seen(f"{callers} callers: at most 1 connection at a time was tried; CircuitOpenError; then all were answered")
