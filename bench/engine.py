"""The engine suite: gpu-server against what a user would run instead, MiniLM, same texts, all cores, taking turns."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from bench import fairness, reranking, serving, throughput
from bench.contenders import OURS, OURS_BF16, PEERS, REFERENCE, taking_part
from bench.flops import Encoder
from bench.measure import CandidateError, Row, missing, ratio
from bench.server import running
from bench.suite import Suite
from bench.workload import SETS, lengths, texts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.peer import Peer
    from bench.suite import Plan
    from bench.throughput import Rates
    from medkg.local import LocalServer


def measure(
    binary: Path, model: Path, reranker: Path, *, folder: Path, plan: Plan, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """All rows of the suite, and the versions of the peers.

    Args:
        binary: gpu-server.
        model: Folder of all-MiniLM-L6-v2.
        reranker: Folder of medkg-reranker-minilm.
        folder: Gets the peers' logs and the exported graph.
        plan: How much is measured.
        say: Progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        suite = Suite(binary, model, reranker, folder, plan, say, stack)
        say("starting gpu-server")
        try:
            server = stack.enter_context(running(binary, {"m": model}, dtype="f32", reranker=reranker))
        except CandidateError as error:
            return [missing("everything", str(error))], {}
        models = {"model": str(model), "reranker": str(reranker)}
        reference = started(suite, REFERENCE, "reference_encoder", **models)
        gemm = started(suite, "matrix products", "gemm_rate")
        encoders(suite, server, reference, gemm)
        expected = {reranking.NAME: ("ratio", reranking.BAR)}
        suite.section("reranking", expected, lambda: reranking.rows(suite, server, reference))
        plain(suite, server)
    return suite.rows, suite.versions


def started(suite: Suite, name: str, script: str, **arguments: str) -> Peer | CandidateError:
    """A peer of the reference interpreter, or why there is none."""
    try:
        return suite.peer(name, script, "MEDKG_REFERENCE_PYTHON", **arguments)
    except CandidateError as error:
        suite.say(f"  failed: {error}")
        return error


def encoders(suite: Suite, server: LocalServer, reference: Peer | CandidateError, gemm: Peer | CandidateError) -> None:
    """Throughput over each set of texts, in fp32 and bf16, and model FLOP utilisation."""
    everyone = taking_part(suite, server, reference)
    encoder = Encoder.read(suite.model)
    for kind in SETS:
        batch = texts(kind, suite.plan.texts[kind])
        mixed = kind == "mixed"
        rates = throughput.compare(
            kind,
            batch,
            everyone,
            rounds=suite.plan.rounds,
            passes=suite.plan.passes,
            extra=products(gemm, OURS_BF16 in everyone.candidates) if mixed else {},
            say=suite.say,
        )
        suite.rows += throughput_rows(rates)
        if mixed:
            flops = encoder.flops(lengths(kind, len(batch))) / len(batch)
            suite.rows += [utilisation(rates, dtype, flops, gemm) for dtype in ("fp32", "bf16")]
        suite.rows += throughput.setting_rows(f"fp32 throughput, {kind} lengths", rates, OURS, PEERS)
        suite.rows += throughput.absolute_rows(rates)


def throughput_rows(rates: Rates) -> list[Row]:
    """The rows with bars: fp32 over each peer, bf16 over the fastest of them."""
    name = f"fp32 throughput, {rates.kind} lengths"
    rows = [throughput.peer_row(name, rates, OURS, peer, 1.3) for peer in PEERS]
    name = f"bf16 throughput, {rates.kind} lengths"
    try:
        setting, mine = rates.best(OURS_BF16)
        peer, peer_setting, theirs = rates.fastest(PEERS)
    except CandidateError as error:
        return [*rows, missing(name, str(error), peer="the fastest fp32 peer", bar=2.2)]
    return [*rows, ratio(name, mine, theirs, peer=f"{peer}, {peer_setting}", bar=2.2, note=setting)]


def products(gemm: Peer | CandidateError, bf16_too: bool) -> dict[str, Callable[[], float]]:  # noqa: FBT001
    """The matrix products that take turns with the encoders: FLOP/s by dtype."""
    if isinstance(gemm, CandidateError):
        return {}
    return {
        f"matrix product {dtype}": partial(gemm.ask, "rate", dtype=dtype) for dtype in ("fp32", "bf16")[: 1 + bf16_too]
    }


def utilisation(rates: Rates, dtype: str, flops_per_text: float, gemm: Peer | CandidateError) -> Row:
    """Model FLOPs per second over the best matrix product of that round."""
    name, label = f"model FLOP utilisation, {dtype}", f"matrix product {dtype}"
    try:
        setting, mine = rates.best(OURS if dtype == "fp32" else OURS_BF16)
        if label not in rates.extra:
            raise (
                gemm if isinstance(gemm, CandidateError) else CandidateError(rates.failures.get(label, "not measured"))
            )
    except CandidateError as error:
        return missing(name, str(error), peer="best matrix product", bar=0.65)
    best = rates.extra[label]
    peer = f"best matrix product, {statistics.median(best) / 1e9:.0f} GFLOP/s"
    return ratio(
        name,
        [value * flops_per_text for value in mine],
        best,
        peer=peer,
        bar=0.65,
        note=f"{rates.kind} lengths, {setting}",
    )


def plain(suite: Suite, server: LocalServer) -> None:
    """Latency, start, growth and memory."""
    plan, say = suite.plan, suite.say
    latency = "added latency of one short text, over the bare forward pass, p95"
    suite.section(
        "added latency", {latency: ("ms", 2.0)}, lambda: serving.added_latency(server.address, plan.rounds, say)
    )
    flood = {fairness.NAME: ("times", fairness.BAR)}
    suite.section("fairness", flood, lambda: fairness.under_flood(server.address, plan.rounds, say))
    start = {"start to ready, weights in the page cache": ("s", 1.5)}
    suite.section("start to ready", start, lambda: serving.start_to_ready(suite.binary, suite.model, plan.rounds, say))
    texts_too = {"growth: texts/s of 20,000 short texts over 1,000": ("ratio", 0.95)}
    suite.section("growth: 20,000 texts", texts_too, lambda: serving.growth(server.address, plan.growth_rounds, say))
    memory = {"growth: resident memory over a mixed load": ("MiB/min", serving.FLAT)}
    suite.section("growth: memory", memory, lambda: serving.flat_memory(server, plan.load_seconds, say))
