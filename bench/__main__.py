"""`make bench`, or `make bench SUITE=engine` (client, vectors, dagster): writes bench/results and docs/performance.md.

The exit status is 0 whether or not a bar holds: the table says it. Ctrl-C ends every process that was started.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import client, dagster, engine, report, vectors
from bench.machine import commit, machine
from bench.suite import FULL, QUICK

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("engine", "client", "vectors", "dagster")
RERANKER = ROOT / "gpu-server" / "models" / "medkg-reranker-minilm"


def main() -> int:
    """Runs the suites that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, help="one suite; all if absent")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison (at least 1)")
    parser.add_argument("--full", action="store_true", help="engine: more rounds and settings, a load of 20 minutes")
    parser.add_argument("--load", type=float, metavar="SECONDS", help="engine: length of the mixed load for memory")
    options = parser.parse_args()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, stop)
    # A background job of a shell ignores SIGINT; a bench has to be stoppable there too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {line}", file=sys.stderr, flush=True)

    try:
        for suite in (options.suite,) if options.suite else SUITES:
            # Before anything is measured: what is built and committed meanwhile was not.
            outcome = {"suite": suite, "machine": machine(), "commit": commit(ROOT), **run(suite, options, say)}
            path = ROOT / "bench" / "results" / f"{suite}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n", "utf-8")
            print(report.table(outcome), report.verdict(outcome), sep="\n\n", flush=True)
    except KeyboardInterrupt:
        say("stopped; suites that had ended are written")
        return 130
    report.draw(ROOT)
    print("written: bench/results/*.json, docs/performance.md and docs/plots")
    return 0


def run(suite: str, options: argparse.Namespace, say: Any) -> dict[str, Any]:
    """What a suite adds to its results: how it was run, and its rows."""
    binary = ROOT / "build" / "gpu-server"
    if suite == "client":
        rows = client.measure(binary, ROOT / "proto", repetitions=options.rounds or 5, say=say)
        return {"rows": [row.as_json() for row in rows]}
    if suite == "vectors":
        folder = ROOT / "build" / "bench"
        rows, versions = vectors.measure(binary, rounds=options.rounds or 5, folder=folder, say=say)
        size = f"{vectors.POINTS:,} x {vectors.DIMENSION} vectors, k = {vectors.K}, {options.rounds or 5} rounds"
        return {"mode": size, "versions": versions, "rows": [row.as_json() for row in rows]}
    if suite == "dagster":
        model = Path(os.environ["MEDKG_TEST_MODEL_DIR"])
        rows = dagster.measure(binary, model, folder=ROOT / "build" / "bench", say=say)
        mode = f"{dagster.DOCUMENTS:,} documents in {dagster.BATCHES} batches"
        return {"mode": mode, "rows": [row.as_json() for row in rows]}
    plan = FULL if options.full else QUICK
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    if options.load:
        plan = replace(plan, load_seconds=options.load)
    model = Path(os.environ["MEDKG_TEST_MODEL_DIR"])
    folder = ROOT / "build" / "bench"
    rows, versions = engine.measure(binary, model, RERANKER, folder=folder, plan=plan, say=say)
    texts = ", ".join(f"{count} {kind}" for kind, count in plan.texts.items())
    form = "full" if plan.full else "quick"
    mode = f"{form} form: {plan.rounds} rounds; texts: {texts}; mixed load of {plan.load_seconds:.0f} s"
    return {"mode": mode, "versions": versions, "rows": [row.as_json() for row in rows]}


def stop(number: int, _frame: object) -> None:
    """SIGTERM ends the bench as Ctrl-C does."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
