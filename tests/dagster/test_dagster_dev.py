"""`dagster dev` with the environment `dev`: one gpu-server, over reloads too, and nothing left of it at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import medkg
from tests.services import free_port
from tests.terminal import IN_A_TERMINAL

from .deployment import ask, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.requirement("isolation 11.3"), pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = """
from pathlib import Path
import time
import dagster as dg
from medkg.dagster import GpuServicesResource, medkg_definitions

HERE = Path(__file__).parent

@dg.op
def embeds_when_told(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> None:
    (HERE / "at-work").touch()
    while not (HERE / "go").exists():
        time.sleep(0.02)
    with gpu_services.for_run(context) as run:
        run.embedding.embed(["fever"])

@dg.job
def NAME():
    embeds_when_told()

def project():
    pipeline = medkg_definitions(documents="documents", env="dev", config=str(HERE))
    (HERE / "address").write_text(pipeline.resources["gpu_services"].address)
    return dg.Definitions.merge(pipeline, dg.Definitions(jobs=[NAME]))

defs = project()
"""
LOCATION = "definitions.py"


class Dev:
    """A running `dagster dev` over a project in `home`."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.home, port = home, free_port()
        self.url = f"http://127.0.0.1:{port}/graphql"
        (home / "dev.toml").write_text('tenant = "dev"\n')
        (home / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
        self.write("first")
        with (home / "dev.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *IN_A_TERMINAL,
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "dagster",
                    "dev",
                    "-f",
                    LOCATION,
                    "-p",
                    str(port),
                ],
                cwd=home,
                env={**os.environ, **environment, "DAGSTER_HOME": str(home)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def write(self, job: str) -> None:
        """Writes the project's file, with a job of that name."""
        (self.home / LOCATION).write_text(PROJECT.replace("NAME", job))

    def jobs(self) -> set[str]:
        """What the page shows."""
        assert self.process.poll() is None, (self.home / "dev.log").read_text()[-3000:]
        query = "{answer: repositoriesOrError{__typename ...on RepositoryConnection{nodes{pipelines{name}}}}}"
        try:
            found = ask(self.url, query, {}, "RepositoryConnection")
        except OSError:  # it does not listen yet
            return set()
        return {job["name"] for repository in found["nodes"] for job in repository["pipelines"]}

    def reload(self) -> None:
        """What the page's button for a code location does."""
        query = "mutation($l: String!){answer: reloadRepositoryLocation(repositoryLocationName: $l){__typename}}"
        ask(self.url, query, {"l": LOCATION}, "WorkspaceLocationEntry")

    def launch(self, job: str) -> str:
        """Launches a job; returns the run's id."""
        selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "pipelineName": job}
        query = (
            "mutation($p: ExecutionParams!){answer: launchRun(executionParams: $p)"
            "{__typename ...on LaunchRunSuccess{run{runId}}}}"
        )
        answer = ask(self.url, query, {"p": {"selector": selector, "mode": "default"}}, "LaunchRunSuccess")
        return str(answer["run"]["runId"])

    def status(self, run: str) -> str:
        """How far a run is."""
        query = "query($r: ID!){answer: runOrError(runId: $r){__typename ...on Run{status}}}"
        return str(ask(self.url, query, {"r": run}, "Run")["status"])

    def processes(self) -> dict[int, list[str]]:
        """Every living process that was started for this home, by its id, with its command line."""
        found: dict[int, list[str]] = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if (
                    folder.name.isdigit()
                    and f"DAGSTER_HOME={self.home}\0".encode() in (folder / "environ").read_bytes()
                ):
                    found[int(folder.name)] = (folder / "cmdline").read_text().split("\0")
        return {pid: command for pid, command in found.items() if command != [""]}

    def servers(self) -> set[int]:
        """The gpu-servers among them."""
        return {pid for pid, command in self.processes().items() if command[0].endswith("gpu-server")}

    def code_servers(self) -> set[int]:
        """The processes that have loaded the project's file for the page."""
        return {pid for pid, command in self.processes().items() if command[3:6] == ["dagster", "api", "grpc"]}


@pytest.fixture
def environment(gpu_server_binary: Path, minilm_dir: Path, reranker_dir: Path) -> dict[str, str]:
    return {
        "MEDKG_GPU_SERVER": str(gpu_server_binary),
        "MEDKG_EMBEDDING_MODELS": f"all-MiniLM-L6-v2={minilm_dir}",
        "MEDKG_RERANKING_MODELS": f"medkg-reranker-minilm={reranker_dir}",
    }


@contextmanager
def developing(home: Path, environment: dict[str, str]) -> Iterator[Dev]:
    dev = Dev(home, environment)
    try:
        wait_until(lambda: "first" in dev.jobs(), "the page does not know the project")
        yield dev
    finally:
        for pid in dev.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        dev.process.wait(30)


def collections(address: str) -> int:
    """How many collections there are; the folder of collections has to be the server's for that."""
    with medkg.connect(address=address, tenant="dev", timeout=60) as services:
        return len(services.vector.collections())


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_reload_keeps_the_one_server_and_the_end_leaves_nothing(
    end: signal.Signals, tmp_path: Path, environment: dict[str, str]
) -> None:
    with developing(tmp_path, environment) as dev:
        (server,) = dev.servers()
        address = (tmp_path / "address").read_text()
        with medkg.connect(address=address, tenant="dev", timeout=60) as services:
            services.vector.create_collection("kept", 4)
        old = dev.code_servers()
        run = dev.launch("first")
        wait_until((tmp_path / "at-work").exists, f"the run is {dev.status(run)}")

        for name in ("second", "third"):
            dev.write(name)
            dev.reload()
            wait_until(lambda name=name: name in dev.jobs(), "the page does not know the new file")
            assert (tmp_path / "address").read_text() == address
            assert dev.servers() == {server}, "there is a second one"
            assert collections(address) == 1
        (tmp_path / "go").touch()
        wait_until(lambda: dev.status(run) == "SUCCESS", "the run of before the reload does not end")
        wait_until(lambda: not old & dev.code_servers(), "the old code stays loaded")
        assert dev.servers() == {server}, "it went with the process that started it"
        assert collections(address) == 1

        dev.process.send_signal(end)
        dev.process.wait(120)
        wait_until(lambda: not dev.processes(), f"left behind: {dev.processes()}")
    assert not list((tmp_path / "medkg").glob("gpu-server-*.json"))
