"""What the faults are made of: fleets of small servers, load, a proxy, a bad network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import medkg
from medkg.local import LocalServer
from tests.server.checkpoints import Written, write_bert

from .wire import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Member(NamedTuple):
    """A server of a fleet; `digest` tells its answers from the others'."""

    server: LocalServer
    digest: str


@pytest.fixture
def fleet(gpu_server_binary: Path, minilm_dir: Path, tmp_path: Path) -> Iterator[Callable[..., list[Member]]]:
    """Starts servers: `fleet(3, *arguments)`. Each has a tiny model of its own, unless they are to be `alike`, which it
    loads after those that come `first`."""
    members: list[Member] = []
    models: dict[int, Written] = {}

    def start(number: int, *arguments: str, alike: bool = False, first: dict[str, Path] | None = None) -> list[Member]:
        for _ in range(number):
            seed = 0 if alike else len(members)
            if seed not in models:
                models[seed] = write_bert(tmp_path / f"model-{seed}", minilm_dir, seed=seed)
            model = models[seed]
            server = LocalServer(
                gpu_server_binary,
                services=("embedding",),
                embedding_models={**(first or {}), "tiny": model.folder},
                threads=1,
                log_path=tmp_path / f"server-{len(members)}.jsonl",
                arguments=("--dtype", "f32", *arguments),
                wait=False,
            )
            members.append(Member(server.start(), model.digest))
        for member in members[-number:]:
            with medkg.EmbeddingClient(address=member.server.address, tenant="fleet", timeout=60) as client:
                client.embed(["ready?"], model="tiny")
        return members[-number:]

    yield start
    for member in members:
        member.server.kill()


@pytest.fixture
def client() -> Iterator[Callable[..., medkg.EmbeddingClient]]:
    """Makes clients of addresses: `client([address], timeout=5)`."""
    made: list[medkg.EmbeddingClient] = []

    def make(addresses: list[str], **options: Any) -> medkg.EmbeddingClient:
        made.append(medkg.EmbeddingClient(addresses=addresses, **{"tenant": "faults", "timeout": 30, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """Starts a proxy in front of an address."""
    proxies: list[Proxy] = []

    def start(target: str) -> Proxy:
        proxies.append(Proxy(target))
        return proxies[-1]

    yield start
    for one in proxies:
        one.stop()
