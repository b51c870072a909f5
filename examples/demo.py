"""Runs the example project: starts gpu-server on the CPU, runs the job through Dagster, prints what it found.

    python demo.py --server-binary PATH --embedding-model NAME=DIR --reranking-model NAME=DIR [--docs PATH]
    python demo.py ... --ui        the same project in Dagster's web UI, with gpu-server beside it

The Dagster instance and the vectors stay in folders beside this file, so that a second run is quick and the web UI
shows the runs of the first. Both processes are stopped at the end, on Ctrl-C (exit status 130) and on SIGTERM (143).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, cast

import demo_report as report  # pyright: ignore[reportImplicitRelativeImport] - run as a script

from medkg.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dagster import DagsterInstance

    from medkg.dagster import Answer

HERE = Path(__file__).resolve().parent
JOB = "literature"
RUN_TAG = "medkg/demo"
TENANT_TAG = "medkg/tenant_id"
POLL = 0.2
STOP_WAIT = 20.0
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit status."""
    options = _parse(arguments)
    stopped_by = _stop_on_sigterm()
    try:
        return _ui(options) if options.ui else _run(options)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return EXIT_TERMINATED if stopped_by else EXIT_INTERRUPTED
    except (OSError, RuntimeError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from dagster import DagsterInstance  # noqa: PLC0415 - seconds; bad arguments are refused without it

    started = time.monotonic()
    screen = report.Screen()
    _prepare(options)
    with _server(options, screen) as server, DagsterInstance.get() as instance:
        mark = uuid.uuid4().hex
        log = options.home / "logs" / f"demo-{mark[:8]}.log"
        screen.fact("tenant", options.tenant)
        screen.fact("Dagster", f"{options.home} (log: {log.name})")
        with _child(_job_command(options, mark), log, server.address) as process:
            progress = report.Progress(screen)
            run_id = _follow(instance, mark, process, progress)
        run = None if run_id is None else instance.get_run_by_id(run_id)
        if run is None or not run.is_success:
            screen.failed(progress.failures, log)
            return 1
        answers = _answers(instance)
    screen.summary(progress, answers, time.monotonic() - started)
    return 0


def _ui(options: argparse.Namespace) -> int:
    screen = report.Screen()
    _prepare(options)
    with _server(options, screen) as server:
        screen.fact("web UI", f"http://127.0.0.1:{options.port}  (Ctrl-C stops it)")
        command = [*_dagster("dev"), "-f", str(HERE / "definitions.py"), "-h", "127.0.0.1", "-p", str(options.port)]
        with _child(command, None, server.address) as process:
            return process.wait()


def _follow(
    instance: DagsterInstance, mark: str, process: subprocess.Popen[bytes], progress: report.Progress
) -> str | None:
    """Passes the events of the run on until it and its process are done; returns the run's id, None without a run."""
    from dagster import RunsFilter  # noqa: PLC0415 - as above

    run_id: str | None = None
    cursor: str | None = None
    done = False
    while True:
        done = process.poll() is not None  # asked before the events are read, so that the last of them are seen
        if run_id is None:
            runs = instance.get_runs(RunsFilter(tags={RUN_TAG: mark}), limit=1)
            run_id = runs[0].run_id if runs else None
        if run_id is not None:
            page = instance.get_records_for_run(run_id, cursor=cursor, limit=500)
            cursor = page.cursor
            for record in page.records:
                progress.event(record.event_log_entry)
            if page.has_more:
                continue
        if done:
            progress.close()
            return run_id
        progress.tick()
        time.sleep(POLL)


def _answers(instance: DagsterInstance) -> list[Answer]:
    """What `reranked_answers` stored in this run."""
    from definitions import defs  # noqa: PLC0415  # pyright: ignore[reportImplicitRelativeImport] - as above

    logging.disable(logging.DEBUG)  # Dagster tells which file it reads

    return cast("list[Answer]", defs.load_asset_value("reranked_answers", instance=instance))


def _job_command(options: argparse.Namespace, mark: str) -> list[str]:
    ops: dict[str, object] = {}
    if options.question:
        ops["reranked_answers"] = {"config": {"questions": options.question}}
    config = options.home / "demo-run.json"
    config.write_text(json.dumps({"ops": ops} if ops else {}), encoding="utf-8")
    tags = {RUN_TAG: mark, TENANT_TAG: options.tenant}
    return [
        *_dagster("job", "execute"),
        *("-f", str(HERE / "definitions.py"), "-j", JOB, "-c", str(config), "--tags", json.dumps(tags)),
    ]


def _dagster(*command: str) -> list[str]:
    # Warnings of Dagster about its own command line are not the user's business.
    return [sys.executable, "-W", "ignore", "-m", "dagster", *command]


@contextmanager
def _server(options: argparse.Namespace, screen: report.Screen) -> Iterator[LocalServer]:
    started = time.monotonic()
    screen.waiting("starting gpu-server on the CPU")
    server = LocalServer(
        options.server_binary,
        embedding_models=options.embedding_model,
        reranking_models=options.reranking_model,
        data_dir=options.data_dir,
        device="cpu",
        threads=options.threads,
        log_path=options.home / "logs" / "gpu-server.log",
    )
    with server:
        os.environ["MEDKG_ADDRESS"] = server.address
        screen.fact("gpu-server", f"{server.address}  device cpu, ready in {time.monotonic() - started:.1f} s")
        with _uninterrupted_exit():
            yield server


@contextmanager
def _child(command: list[str], log: Path | None, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that does not outlive the block; interrupted first, killed when it does not obey."""
    environment = {**os.environ, "MEDKG_ADDRESS": address}
    output = None if log is None else log.open("wb")
    try:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=output, stderr=output)
        try:
            with _uninterrupted_exit():
                yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_WAIT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        if output is not None:
            output.close()


@contextmanager
def _uninterrupted_exit() -> Iterator[None]:
    """After the block a second Ctrl-C is ignored, so that what was started is stopped all the same."""
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop_on_sigterm() -> list[int]:
    """Makes SIGTERM stop the demo as Ctrl-C does; the list gets the signal's number."""
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    return received


def _prepare(options: argparse.Namespace) -> None:
    """Makes the instance's folder and sets what definitions.py reads."""
    (options.home / "logs").mkdir(parents=True, exist_ok=True)
    copyfile(HERE / "dagster.yaml", options.home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(options.home)
    os.environ["MEDKG_TENANT"] = options.tenant
    if options.docs is not None:
        os.environ["MEDKG_DOCUMENTS"] = str(options.docs)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--server-binary", type=Path, required=True, metavar="PATH", help="gpu-server")
    for kind in ("embedding", "reranking"):
        parser.add_argument(
            f"--{kind}-model", type=_model, action="append", required=True, metavar="NAME=DIR", help=f"{kind} model"
        )
    parser.add_argument("--docs", type=_existing, metavar="PATH", help="your file or folder instead of the samples")
    parser.add_argument("--question", action="append", metavar="TEXT", help="your question instead of the samples'")
    parser.add_argument("--tenant", help="whose data this is (default: demo, or one made from the path of --docs)")
    parser.add_argument("--home", type=_folder, default=HERE / ".dagster", metavar="DIR", help="Dagster's home folder")
    parser.add_argument("--data-dir", type=_folder, default=HERE / ".medkg", metavar="DIR", help="gpu-server's folder")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of gpu-server (default: its own choice)")
    parser.add_argument("--ui", action="store_true", help="open the project in Dagster's web UI instead")
    parser.add_argument("--port", type=int, default=3000, metavar="N", help="port of the web UI (default: 3000)")
    options = parser.parse_args(arguments)
    options.embedding_model = dict(options.embedding_model)
    options.reranking_model = dict(options.reranking_model)
    options.tenant = options.tenant or _tenant(options.docs)
    return options


def _tenant(docs: Path | None) -> str:
    """A tenant of their own for the user's documents, so that the samples do not turn up among their answers."""
    if docs is None:
        return "demo"
    return "demo-" + hashlib.sha256(os.fsencode(docs)).hexdigest()[:12]


def _model(text: str) -> tuple[str, str]:
    name, separator, folder = text.partition("=")
    if not separator or not name or not folder:
        msg = f"{text!r} is not NAME=DIR"
        raise argparse.ArgumentTypeError(msg)
    return name, folder


def _folder(text: str) -> Path:
    return Path(text).resolve()


def _existing(text: str) -> Path:
    path = Path(text).resolve()
    if not path.exists():
        msg = f"{text}: no such file or folder"
        raise argparse.ArgumentTypeError(msg)
    return path


if __name__ == "__main__":
    sys.exit(main())
