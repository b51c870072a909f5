"""What the Rust client tells on its way is in Python's logging."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

REQUEST = "r-7"


def of_client(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "medkg.client"]


@pytest.mark.requirement("isolation 5.4")
def test_a_breaker_that_opens_is_logged_with_the_call_that_opened_it(
    refusing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medkg")
    begun = time.time()
    with medkg.EmbeddingClient(address=refusing, tenant="demo", breaker_failures=2, backoff_initial=0.001) as client:
        with pytest.raises(medkg.CircuitOpenError) as failed:
            client.embed(["Aspirin"], request_id=REQUEST)
        (record,) = of_client(caplog)
    assert record.levelno == logging.WARNING
    assert "circuit breaker opened" in record.getMessage()
    assert refusing in record.getMessage()
    told = (record.address, record.tenant, record.request_id, record.trace_id)
    assert told == (refusing, "demo", REQUEST, failed.value.trace_id)
    assert begun - 1 <= record.created <= time.time()
    assert "Aspirin" not in caplog.text


def test_it_is_logged_in_asyncio_too(refusing: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medkg")

    async def run() -> None:
        options: dict[str, Any] = {"breaker_failures": 1, "backoff_initial": 0.001}
        async with medkg.AsyncEmbeddingClient(address=refusing, tenant="demo", **options) as client:
            with pytest.raises(medkg.CircuitOpenError):
                await client.embed(["Aspirin"])
        # The answer wakes the loop; what was told is handed on after it.
        await asyncio.sleep(0)

    asyncio.run(run())
    assert [record.levelname for record in of_client(caplog)] == ["WARNING"]


def test_a_level_that_is_off_costs_no_record(refusing: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "medkg.client")
    with (
        medkg.EmbeddingClient(address=refusing, tenant="demo", breaker_failures=1) as client,
        pytest.raises(medkg.CircuitOpenError),
    ):
        client.embed(["Aspirin"])
    assert of_client(caplog) == []


def test_a_forked_child_logs_for_itself(server: LocalServer, refusing: str, script: Callable[..., Any]) -> None:
    code = """
    import logging, os, sys
    import medkg

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(process)d %(name)s %(address)s")
    services = medkg.connect(address=sys.argv[1], tenant="demo")
    services.gpu.status()
    child = os.fork()
    try:
        medkg.EmbeddingClient(address=sys.argv[2], tenant="demo", breaker_failures=1).embed(["x"])
    except medkg.CircuitOpenError:
        print(os.getpid(), "failed", flush=True)
    if child:
        os.waitpid(child, 0)
    """
    done = script(code, server.address, refusing).finish()
    lines = [line.split() for line in done.out.splitlines()]
    told = {line[0] for line in lines if line[1:] == ["medkg.client", refusing]}
    failed = {line[0] for line in lines if line[1:] == ["failed"]}
    assert len(failed) == 2, done.err
    assert told == failed, done.out
