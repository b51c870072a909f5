"""More than a server takes, and messages that are larger than either side takes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.local import LocalServer

    from .conftest import Member

TOO_LARGE = "the request or its answer is larger than the 32 MiB that a message may have"
LONG = ["word " * 60] * 32
"""About 2,000 tokens: more than the whole queue of the test's server, so one such call fills it."""


@pytest.mark.fault(
    "Overload",
    "a server's queue is full, and says when to come back",
    "calls wait as told and are answered; none counts for the breaker; without retries it is RateLimitedError",
)
def test_a_full_queue_with_pushback(
    fleet: Callable[..., list[Member]], client: Callable[..., medkg.EmbeddingClient], seen: Callable[[str], None]
) -> None:
    [member] = fleet(1, "--queue-tokens", "1000")
    patient = client([member.server.address], timeout=120, max_attempts=2, breaker_failures=1)
    hasty = client([member.server.address], tenant="hasty", timeout=120, max_attempts=1)
    waited, refused, deadline = 0, None, time.monotonic() + 60
    with ThreadPoolExecutor(8) as pool:
        while waited == 0 or refused is None:
            assert time.monotonic() < deadline, "the queue is never full"
            calls = [pool.submit(patient.embed, LONG) for _ in range(24)]
            try:
                hasty.embed(LONG)
            except medkg.RateLimitedError as error:
                refused = error
            results = [call.result() for call in calls]
            waited += sum(result.usage.retries for result in results)
    assert (refused.code, refused.reason, refused.attempts) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1)
    assert (refused.retry_after or 0) > 0
    for one in (patient, hasty):
        [endpoint] = one.endpoints()
        assert (endpoint.breaker, endpoint.changes, endpoint.pending) == ("closed", [], 0)
    seen(
        "callers of 24 calls at once waited and were answered; without retries: RateLimitedError QUEUE_FULL with a wait"
    )


@pytest.mark.fault(
    "Overload",
    "a request is larger than a server takes",
    "it fails at once as a fault of the arguments; others on the connection are served",
)
def test_a_request_that_is_too_large(server: LocalServer, seen: Callable[[str], None]) -> None:
    # The documents of one query stay together.
    documents = ["word " * 200_000] * 40
    with medkg.RerankingClient(address=server.address, tenant="large", timeout=60) as client:
        with pytest.raises(medkg.RerankingValidationError, match=TOO_LARGE) as large:
            client.rerank("query", documents)
        assert (large.value.attempts, large.value.breaker_state) == (1, "closed")
        assert len(client.rerank("query", ["document"]).documents) == 1
    seen("RerankingValidationError, one attempt, breaker closed")


@pytest.mark.fault(
    "Overload",
    "an answer is larger than the client takes",
    "it fails at once, and says so; no breaker opens",
)
def test_an_answer_that_is_too_large(peer: Any, seen: Callable[[str], None]) -> None:
    peer.answer = b"\x12" + b"\x80\x80\x80\x10" + b"\x00" * (32 * 2**20)
    with medkg.EmbeddingClient(address=peer.address, tenant="large", timeout=60) as client:
        with pytest.raises(medkg.MedkgError, match=TOO_LARGE) as large:
            client.embed(["text"])
        assert (large.value.attempts, large.value.breaker_state) == (1, "closed")
    seen(f"{type(large.value).__name__}, one attempt, breaker closed")
