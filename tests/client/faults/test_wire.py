"""Connections that break, crawl, are asked to end, or lead to something that is no gpu-server."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

from .load import TEXT, Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Member
    from .wire import Proxy

TEXTS = [f"Dose {number} mg of the drug was given to the patient." for number in range(400)]


@pytest.mark.fault(
    "Network",
    "a connection is reset in the middle of an answer (RST)",
    "the batches without an answer are sent again; all come, once and in order",
)
def test_a_connection_is_reset_in_the_middle(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    wire = proxy(member.server.address)
    expected = client([member.server.address]).embed(TEXTS).vectors
    through = client([wire.address], max_batch_texts=20)
    through.embed(TEXT)
    for answered in (300, 5_000, 20_000):
        for embed in (
            lambda: through.embed(TEXTS).vectors,
            lambda: np.vstack([result.vectors for result in through.embed_stream(TEXTS)]),
        ):
            wire.reset_after(answered)
            np.testing.assert_allclose(embed(), expected, atol=1e-5)
            assert wire.was_reset
    seen("3 resets of batches and 3 of a stream, none in sight of the caller")


@pytest.mark.fault(
    "Network",
    "connections are reset under load, again and again",
    "no call fails while there are retries to spend",
)
def test_connections_are_reset_under_load(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    proxies = [proxy(member.server.address) for member in fleet(2)]
    with Load(client([one.address for one in proxies])) as load:
        for _ in range(5):
            for one in proxies:
                load.wait_for(100)
                one.reset()
        load.wait_for(100)
    assert load.errors() == []
    assert sum(one.accepted for one in proxies) >= 10
    seen("10 resets, no call failed")


@pytest.mark.fault(
    "Network",
    "a connection with many calls on it is reset",
    "that is one failure, however many calls were on it: the breaker stays closed, and none of them fails",
)
def test_a_busy_connection_is_reset(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    wire = proxy(member.server.address)
    through = client([wire.address], breaker_failures=3, retry_budget=1)
    callers = 8
    with Load(through, callers, ["word " * 60] * 200) as load:
        load.wait_for(callers)
        for _ in range(2):
            wire.reset()
            load.wait_for(callers)
    assert load.errors() == []
    assert [endpoint.changes for endpoint in through.endpoints()] == [[]]
    seen(f"2 resets under {callers} callers: breaker closed, no call failed")


@pytest.mark.fault(
    "Network",
    "servers end their connections again and again under load (GOAWAY)",
    "no call fails, even without retries",
)
def test_servers_end_their_connections(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    proxies = [proxy(member.server.address) for member in fleet(2, "--connection-age", "0.2")]
    through = client([one.address for one in proxies], max_attempts=1)
    deadline = time.monotonic() + 60
    with Load(through) as load:
        while sum(one.accepted for one in proxies) < 12:
            load.wait_for(50)
            assert time.monotonic() < deadline, "connections do not end"
    assert load.errors() == []
    assert [endpoint.breaker for endpoint in through.endpoints()] == ["closed", "closed"]
    seen("more than 10 connections ended, no call failed, retries turned off")


@pytest.mark.fault(
    "Network",
    "answers come in drops",
    "a call ends with its deadline; its connection serves others that are small, and all when it flows again",
)
def test_answers_that_come_in_drops(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    proxy: Callable[[str], Proxy],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    wire = proxy(member.server.address)
    through = client([wire.address])
    through.embed(TEXT)
    wire.trickle(128, 0.02)
    # The answer is some 16 KiB: more than two seconds.
    begun = time.monotonic()
    with pytest.raises(medkg.ServiceTimeoutError) as late:
        through.embed(TEXTS[:120], timeout=0.5)
    assert 0.4 < time.monotonic() - begun < 5
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert through.embed(TEXT, timeout=20).vectors.shape == (1, 32)
    wire.flow()
    assert through.embed(TEXTS, timeout=20).vectors.shape == (len(TEXTS), 32)
    assert [endpoint.pending for endpoint in through.endpoints()] == [0]
    seen("ServiceTimeoutError after the call's timeout; a small call is answered meanwhile, large ones afterwards")


GARBAGE = {
    "an answer of HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    "noise": os.urandom(4096),
    "a frame that is too large": b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"\x00" * 1024,
    "an alert of TLS": b"\x15\x03\x03\x00\x02\x02\x28",
    "nothing": b"",
}


@pytest.fixture
def talker() -> Iterator[Callable[[bytes], str]]:
    """Listens, and answers whatever is sent with the same bytes and the end of the connection."""
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        listeners.append(listener)

        def talk() -> None:
            while True:
                try:
                    wire, _ = listener.accept()
                except OSError:
                    return
                with wire:
                    wire.settimeout(5)
                    try:
                        wire.recv(4096)
                        wire.sendall(answer)
                    except OSError:
                        continue

        threading.Thread(target=talk, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.fault(
    "Network",
    "what answers at an address is no gRPC server",
    "a fault of the network: the next address is asked; alone, ServiceUnavailableError that says so",
)
def test_garbage_on_the_port(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    talker: Callable[[bytes], str],
    seen: Callable[[str], None],
) -> None:
    [member] = fleet(1)
    for kind, answer in GARBAGE.items():
        address = talker(answer)
        with pytest.raises(medkg.ServiceUnavailableError) as wrong:
            client([address], max_attempts=2, timeout=10).embed(TEXT)
        assert (wrong.value.endpoint, wrong.value.attempts) == (address, 2), kind
        with Load(client([address, member.server.address]), 4) as load:
            load.wait_for(100)
        assert load.errors() == [], kind
        assert {call.digest for call in load.calls} == {member.digest}
    seen(f"{', '.join(GARBAGE)}: ServiceUnavailableError; beside a server no call failed")
