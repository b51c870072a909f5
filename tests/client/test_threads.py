"""One client in many threads; `ops/dev/free-threaded.sh` runs this file on an interpreter without the GIL too."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from medkg.local import LocalServer

THREADS = 16


@pytest.mark.requirement("isolation 13.1")
def test_threads_share_a_client_and_each_gets_its_own_answer(server: LocalServer) -> None:
    texts = [f"case {number} of acute kidney injury" for number in range(THREADS)]
    together = threading.Barrier(THREADS)
    with medkg.EmbeddingClient(address=server.address, tenant="threads") as client:
        alone = [client.embed([text]).vectors[0] for text in texts]

        def ask(number: int) -> list[medkg.EmbeddingResult]:
            together.wait(60)
            # Context is a thread's own: the names must not get mixed up.
            with medkg.context(tenant=f"tenant-{number}"):
                return [client.embed([texts[number]], request_id=f"{number}-{turn}") for turn in range(10)]

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(ask, range(THREADS)))
    for number, results in enumerate(answers):
        assert [result.request_id for result in results] == [f"{number}-{turn}" for turn in range(10)]
        for result in results:
            np.testing.assert_allclose(result.vectors[0], alone[number], atol=1e-5)


def test_a_client_that_is_closed_while_threads_use_it_ends_their_calls_with_an_error_of_medkg(
    server: LocalServer,
) -> None:
    client = medkg.EmbeddingClient(address=server.address, tenant="threads")
    begun = threading.Barrier(THREADS + 1)

    def ask(_: int) -> BaseException | None:
        begun.wait(60)
        try:
            while True:
                client.embed(["acute kidney injury"])
        except medkg.MedkgError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        ends = pool.map(ask, range(THREADS))
        begun.wait(60)
        client.close()
        assert all(isinstance(end, medkg.MedkgError) for end in ends)
