"""Reranking: one query with 100 passages, against sentence-transformers' CrossEncoder in fp32."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from bench import throughput
from bench.measure import CandidateError, Row, interleave, rate, ratio
from bench.server import connected
from bench.suite import present
from bench.throughput import Candidate
from bench.workload import passages

if TYPE_CHECKING:
    from collections.abc import Sequence

    import medkg
    from bench.peer import Peer
    from bench.suite import Suite
    from medkg.local import LocalServer

NAME, BAR = "rerank of 100 passages, fp32", 1.25
PASSAGES = 100
OURS, CROSS = "gpu-server fp32", "CrossEncoder"
CLOSE = 0.01
"""Logits may be this far apart; more, and the two did other work."""


def rows(suite: Suite, server: LocalServer, reference: Peer | CandidateError) -> list[Row]:
    """The ratio, with CrossEncoder at its best batch size, and both rates.

    Raises:
        CandidateError: The peer cannot run, or gives other logits.
    """
    peer = present(reference)
    query, documents = passages(PASSAGES)
    settings = {
        f"batch {size}": lambda batch, size=size: peer.ask("rerank", query=query, passages=batch, batch=size)
        for size in suite.plan.batches
    }
    with connected(server.address) as services:
        agree(services, peer, query, documents[:8])

        def seconds(batch: Sequence[str]) -> float:
            started = time.perf_counter()
            services.reranking.rerank(query, batch)
            return time.perf_counter() - started

        failures: dict[str, str] = {}
        tuned = throughput.tune(Candidate(CROSS, settings), documents[::2], suite.plan.passes, failures, suite.say)
        if not tuned:
            raise CandidateError(failures[CROSS])
        best = next(iter(tuned))
        runs = {
            OURS: partial(throughput.at_rest, seconds, documents),
            CROSS: partial(throughput.at_rest, settings[best], documents),
        }
        rates = interleave(runs, repetitions=suite.plan.rounds, say=suite.say)
    peer_name = f"{CROSS}, {best}"
    return [
        ratio(NAME, rates[OURS], rates[CROSS], peer=peer_name, bar=BAR),
        rate(f"{OURS}, reranking", rates[OURS], "passages/s"),
        rate(f"{peer_name}, reranking", rates[CROSS], "passages/s"),
    ]


def agree(services: medkg.Services, peer: Peer, query: str, documents: list[str]) -> None:
    """Checks that both give the same logits."""
    ours = {ranked.index: ranked.relevance for ranked in services.reranking.rerank(query, documents).documents}
    theirs = peer.ask("scores", query=query, passages=documents)
    apart = max(abs(ours[at] - score) for at, score in enumerate(theirs))
    if apart > CLOSE:
        raise CandidateError(f"the logits of gpu-server and {CROSS} are {apart:.3f} apart: not the same work")
