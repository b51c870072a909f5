"""Who is compared: gpu-server and its peers, each with the settings among which its best is looked for.

Whoever takes part shows first that it does the same work: its vectors of a few texts are compared with those of
sentence-transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import medkg
from bench.machine import has_bf16
from bench.measure import CandidateError
from bench.server import connected, embed_seconds, running
from bench.suite import present
from bench.throughput import Candidate, Field
from bench.workload import texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.peer import Peer
    from bench.suite import Suite
    from medkg.local import LocalServer

Vectors = Any  # rows of numbers: numpy's from gpu-server, lists from peers

OURS, OURS_BF16 = "gpu-server fp32", "gpu-server bf16"
REFERENCE, INFINITY, ONNX = "sentence-transformers", "infinity-emb", "ONNX Runtime"
PEERS = (REFERENCE, INFINITY, ONNX)
CONCURRENCY = (1, 8, 32)
USUAL_BATCH = 16
ONNX_QUICK = {("fused", 4), ("fused", 8), ("fused", 16), ("plain", 8)}
PEERS_PYTHON = "MEDKG_PEERS_PYTHON"
NO_BF16 = "not applicable: this CPU has neither AVX512_BF16 nor AMX"
SAME = {OURS: 0.99999, OURS_BF16: 0.999, REFERENCE: 0.99999, INFINITY: 0.9999, ONNX: 0.9999}
"""Least cosine to sentence-transformers' vectors; whoever is below it did other work and is not compared."""
PROBE = texts("mixed", 8)


def taking_part(suite: Suite, server: LocalServer, reference: Peer | CandidateError) -> Field:
    """Starts everyone; who cannot run or gives other vectors is noted with the reason."""
    truth = None if isinstance(reference, CandidateError) else reference.ask("vectors", texts=PROBE)
    starts: dict[str, Callable[[], tuple[Candidate, Vectors]]] = {
        OURS: lambda: ours(OURS, server, all_settings=True),
        REFERENCE: lambda: in_process(suite, present(reference)),
        INFINITY: lambda: infinity(suite),
        ONNX: lambda: onnx(suite),
        OURS_BF16: lambda: bf16(suite),
    }
    everyone = Field()
    for name, start in starts.items():
        joined = join(name, start, truth)
        if isinstance(joined, Candidate):
            everyone.candidates[name] = joined
        else:
            everyone.failures[name] = joined
            suite.say(f"  {name} takes no part: {joined}")
    return everyone


def join(name: str, start: Callable[[], tuple[Candidate, Vectors]], truth: Vectors | None) -> Candidate | str:
    """A candidate that runs and does the same work, or why it does not."""
    try:
        candidate, vectors = start()
        check(name, vectors, truth)
    except (CandidateError, medkg.MedkgError) as error:
        return str(error)
    return candidate


def check(name: str, vectors: Vectors, truth: Vectors | None) -> None:
    """Compares vectors with sentence-transformers', if there are any.

    Raises:
        CandidateError: They are too far apart.
    """
    if truth is not None and (cosine := least_cosine(vectors, truth)) < SAME[name]:
        raise CandidateError(f"its vectors are not those of {REFERENCE}: cosine {cosine:.5f}")


def least_cosine(ours: Vectors, theirs: Vectors) -> float:
    """The smallest cosine between rows."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def ours(name: str, server: LocalServer, *, all_settings: bool) -> tuple[Candidate, Vectors]:
    """gpu-server at each concurrency."""
    address = server.address
    settings = {
        f"concurrency {callers}": lambda batch, callers=callers: embed_seconds(address, batch, callers)
        for callers in CONCURRENCY
    }
    with connected(address) as services:
        return Candidate(name, settings, all_settings), services.embedding.embed(PROBE).vectors


def bf16(suite: Suite) -> tuple[Candidate, Vectors]:
    """A second gpu-server, in bf16, where the processor has instructions for it."""
    if not has_bf16():
        raise CandidateError(NO_BF16)
    suite.say("starting gpu-server in bf16")
    server = suite.stack.enter_context(running(suite.binary, {"m": suite.model}, dtype="bf16"))
    return ours(OURS_BF16, server, all_settings=False)


def in_process(suite: Suite, peer: Peer) -> tuple[Candidate, Vectors]:
    """sentence-transformers at each batch size; it sorts by length itself."""
    settings = {
        f"batch {size}": lambda batch, size=size: peer.ask("embed", texts=batch, batch=size)
        for size in suite.plan.batches
    }
    return Candidate(REFERENCE, settings), peer.ask("vectors", texts=PROBE)


def infinity(suite: Suite) -> tuple[Candidate, Vectors]:
    """infinity-emb at each batch size, and each concurrency; the quick form varies one at a time."""
    peer = suite.peer(INFINITY, "infinity_engine", PEERS_PYTHON, model=str(suite.model))
    grid = [(size, callers) for size in suite.plan.batches for callers in CONCURRENCY]
    settings = {
        f"batch {size}, concurrency {callers}": lambda batch, size=size, callers=callers: peer.ask(
            "embed", texts=batch, batch=size, callers=callers
        )
        for size, callers in grid
        if suite.plan.full or callers == 1 or size == USUAL_BATCH
    }
    return Candidate(INFINITY, settings), peer.ask("vectors", texts=PROBE)


def onnx(suite: Suite) -> tuple[Candidate, Vectors]:
    """ONNX Runtime: both graphs; small batches too, in which it is fastest."""
    model, folder = str(suite.model), str(suite.folder)
    peer = suite.peer(ONNX, "onnx_encoder", PEERS_PYTHON, model=model, folder=folder)
    grid = [(graph, size) for graph in ("fused", "plain") for size in (1, 4, 8, 16, 32)]
    settings = {
        f"{graph} graph, batch {size}": lambda batch, graph=graph, size=size: peer.ask(
            "embed", texts=batch, graph=graph, batch=size
        )
        for graph, size in grid
        if suite.plan.full or (graph, size) in ONNX_QUICK
    }
    return Candidate(ONNX, settings), peer.ask("vectors", texts=PROBE, graph="fused")
