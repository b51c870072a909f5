"""What typed contracts cost an embedding stage: the time for request and result, over that of the whole stage."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import medkg
from bench.measure import Row, row
from medkg.contracts import EmbeddingRequest, EmbeddingResult, EmbeddingStage

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS, ROUNDS, TIMES = 256, 7, 100
BAR = 2.0


def measure(address: str, *, say: Callable[[str], None]) -> list[Row]:
    """The row, with a server that embeds.

    The contracts' part is timed by itself, over an answer that is there: as the difference of two stages it would drown
    in their spread.
    """
    say(f"typed contracts around {TEXTS} texts")
    texts = [f"case {number}: acute kidney injury after contrast, creatinine rising" for number in range(TEXTS)]
    ids = [f"chunk-{number}" for number in range(TEXTS)]
    with medkg.EmbeddingClient(address=address, tenant="bench") as client:
        stage, answer = EmbeddingStage(client), client.embed(texts)
        shares = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            stage.run(EmbeddingRequest(texts=texts, ids=ids))
            whole = time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(TIMES):
                EmbeddingResult.of(EmbeddingRequest(texts=texts, ids=ids), answer, seconds=0.0)
            shares.append(100 * (time.perf_counter() - started) / TIMES / whole)
    return [row(f"typed contracts, share of a stage of {TEXTS} texts", shares, "% of the time", bar=BAR)]
