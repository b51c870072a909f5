"""Callers and servers with a bad network between them: run by test_network.py in a network namespace.

    unshare --net python -m tests.client.faults.bad_network SCENARIO GPU_SERVER MODEL...

One server is started for each model. What happened goes to standard output as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import medkg
from medkg.local import LocalServer
from tests.client.faults.link import Link
from tests.client.faults.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable


def late_and_lossy(link: Link, addresses: list[str]) -> dict[str, Any]:
    """200 ms ± 100 each way, and one packet of twenty is lost."""
    link.delay, link.jitter, link.loss = 0.2, 0.1, 0.05
    client = medkg.EmbeddingClient(addresses=addresses, tenant="faults", timeout=60, connect_timeout=20)
    with Load(client, callers=24) as load:
        load.wait_for(120)
    quickest = min(call.ended - call.begun for call in load.calls)
    return {"answers": len({call.digest for call in load.calls}), "quickest": quickest, **failures(load)}


def swallowed_from_the_start(link: Link, addresses: list[str]) -> dict[str, Any]:
    """Nothing comes through to one of the servers; later it does."""
    link.swallowed = frozenset([host(addresses[0])])
    settings = {"connect_timeout": 0.5, "breaker_failures": 2, "breaker_cooldown": 0.5}
    client = medkg.EmbeddingClient(addresses=addresses, tenant="faults", timeout=30, **settings)
    with Load(client) as load:
        load.wait_for(500)
        meanwhile = len({call.digest for call in load.calls})
        deadline = time.monotonic() + 60
        while (told := client.endpoints()[0].last_failure) is None:
            assert time.monotonic() < deadline, "nothing is told of the address"
            time.sleep(0.05)
        link.swallowed = frozenset()
        wait_for_all(load, len(addresses))
    return {"meanwhile": meanwhile, "told": told, **failures(load)}


def swallowed_under_load(link: Link, addresses: list[str]) -> dict[str, Any]:
    """From one moment on nothing comes through to one of the servers, though its connection stands; later it does."""
    settings = {"connect_timeout": 0.5, "breaker_failures": 2, "breaker_cooldown": 0.5}
    client = medkg.EmbeddingClient(addresses=addresses, tenant="faults", timeout=6, **settings)
    callers = 6
    with Load(client, callers) as load:
        wait_for_all(load, len(addresses))
        since = time.monotonic()
        link.swallowed = frozenset([host(addresses[0])])
        load.wait_for(500)
        # Those who were waiting for it have their answers from elsewhere.
        deadline = time.monotonic() + 60
        while client.endpoints()[0].pending:
            assert time.monotonic() < deadline, "calls wait for ever"
            time.sleep(0.05)
        longest = time.monotonic() - since
        link.swallowed = frozenset()
        wait_for_all(load, len(addresses))
    return {"longest": longest, **failures(load)}


SCENARIOS: dict[str, Callable[[Link, list[str]], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (late_and_lossy, swallowed_from_the_start, swallowed_under_load)
}


def host(address: str) -> str:
    """Of `http://HOST:PORT`."""
    return address.removeprefix("http://").rpartition(":")[0]


def wait_for_all(load: Load, servers: int) -> None:
    """Until each of the servers has answered since now."""
    begun, deadline = len(load.calls), time.monotonic() + 60
    while len({call.digest for call in load.calls[begun:] if call.error is None}) < servers:
        assert time.monotonic() < deadline, "not all servers take calls"
        time.sleep(0.01)


def failures(load: Load) -> dict[str, Any]:
    """How many calls were made, and what went wrong."""
    return {"calls": len(load.calls), "errors": [str(error) for error in load.errors()]}


def main(scenario: str, binary: str, *models: str) -> None:
    """Starts the servers, and does it."""
    link = Link()
    servers = [
        LocalServer(
            binary,
            services=("embedding",),
            embedding_models={"tiny": model},
            threads=1,
            arguments=("--dtype", "f32"),
            log_path=f"{model}.jsonl",
        )
        for model in models
    ]
    try:
        addresses = [
            server.start().address.replace("127.0.0.1", f"127.77.0.{number}")
            for number, server in enumerate(servers, start=2)
        ]
        result = SCENARIOS[scenario](link, addresses)
        print(json.dumps({"lost": link.lost, **result}))
    finally:
        for server in servers:
            server.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
