"""A name server in trouble while callers work; tests/client/test_discovery.py has names that change."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from .load import Load
from .names import OddNameServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import medkg

    from .conftest import Member

NAME = "_medkg._tcp.example.test"


@pytest.fixture
def names() -> Iterator[OddNameServer]:
    """A name server that knows NAME."""
    server = OddNameServer(NAME)
    yield server
    server.stop()


@pytest.mark.fault(
    "Discovery",
    "the name server is silent, fails, denies the name, tells of no servers, or answers with noise, under load",
    "what was known stays in use; no call fails; a change is seen once it answers again",
)
def test_a_name_server_in_trouble(
    fleet: Callable[..., list[Member]],
    client: Callable[..., medkg.EmbeddingClient],
    names: OddNameServer,
    seen: Callable[[str], None],
) -> None:
    members = fleet(2)
    names.lead_to([members[0].server.address])
    through = client([f"srv+http://{NAME}"], name_server=names.address)
    moods = ["fails", "denies", "empty", "garbage", "silent"]
    with Load(through) as load:
        load.wait_for(50)
        for mood in moods:
            names.mood = mood
            asked, deadline = names.asked, time.monotonic() + 30
            while names.asked == asked:
                assert time.monotonic() < deadline, "the name is not looked up again"
                load.wait_for(10)
            load.wait_for(50)
        assert {call.digest for call in load.calls} == {members[0].digest}
        names.mood = "answers"
        names.lead_to([members[1].server.address])
        load.wait_for(50, lambda call: call.digest == members[1].digest)
    assert load.errors() == []
    seen(f"{', '.join(moods)}: no call failed")
