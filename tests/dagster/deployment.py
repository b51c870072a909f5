"""A whole Dagster on the loopback: code server, webserver and daemon, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import dagster as dg
from dagster_graphql import DagsterGraphQLClient

from tests.services import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HERE = Path(__file__).parent
DEADLINE = 240.0
SETTINGS = """\
telemetry: {enabled: false}
nux: {enabled: false}
run_retries: {enabled: true, max_retries: 2}
run_coordinator:
  module: dagster
  class: QueuedRunCoordinator
  config: {dequeue_interval_seconds: 1}
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition; fails with `what` when it does not come."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@contextmanager
def quiet() -> Iterator[None]:
    """Dagster's GraphQL client calls gql in a way that gql is about to drop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def ask(url: str, query: str, variables: Mapping[str, Any], expected: str) -> dict[str, Any]:
    """The field `answer` of what a GraphQL query gives; it is of the type that is expected."""
    body = json.dumps({"query": query, "variables": dict(variables)}).encode()
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - on the loopback
    with urlopen(request, timeout=60) as response:  # noqa: S310 - as above
        told = json.load(response)
    answer: dict[str, Any] = (told.get("data") or {}).get("answer") or told
    assert answer.get("__typename") == expected, answer
    return answer


class Deployment:
    """The processes, the GraphQL client, and the instance they share. Failed runs are launched again by the daemon."""

    def __init__(self, home: Path, environment: Mapping[str, str], project: str, location: str) -> None:
        """Starts nothing yet; `environment` is what its processes find in theirs beside the test's own."""
        self.home, self.location = home, location
        self._environment, self._project = dict(environment), str(HERE / project)
        self.url_port, self._code_port = free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        (home / "dagster.yaml").write_text(SETTINGS)
        (home / "workspace.yaml").write_text(
            f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {self._code_port}, location_name: {location}}}}}]\n"
        )
        self.instance = dg.DagsterInstance.from_config(str(home))
        self.client = DagsterGraphQLClient("127.0.0.1", port_number=self.url_port)

    def start(self) -> None:
        """Starts all three and waits until the page knows the jobs."""
        code = ("-m", "dagster", "api", "grpc", "--host", "127.0.0.1", "--port", str(self._code_port))
        self._run("code", *code, "-f", self._project, "--location-name", self.location)
        workspace = ("-w", str(self.home / "workspace.yaml"))
        self._run("web", "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(self.url_port), *workspace)
        self._run("daemon", "-m", "dagster._daemon", "run", *workspace)
        wait_until(self._serves_jobs, "the webserver does not know the jobs")

    def stop(self) -> None:
        """Ends all three."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
        self.instance.dispose()

    def launch(
        self, job: str, *, config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        """Launches a job as the page does; returns the run's id."""
        with quiet():
            return self.client.submit_job_execution(
                job,
                repository_location_name=self.location,
                repository_name="__repository__",
                run_config=dict(config or {}),
                tags=dict(tags or {}),
            )

    def turn_on(self, sensor: str) -> None:
        """Turns a sensor on as the page does."""
        place = "repositoryLocationName: $location, repositoryName: $repository, sensorName: $sensor"
        self.ask(
            "mutation($location: String!, $repository: String!, $sensor: String!)"
            f"{{answer: startSensor(sensorSelector: {{{place}}}){{__typename ...on Sensor{{name}}}}}}",
            {"location": self.location, "repository": "__repository__", "sensor": sensor},
            "Sensor",
        )

    def terminate(self, run_id: str) -> None:
        """Terminates a run as the page does."""
        with quiet():
            self.client.terminate_run(run_id)

    def run(self, run_id: str) -> dg.DagsterRun:
        """The run as it is now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def wait_for_end(self, run_id: str) -> dg.DagsterRun:
        """Waits until the run has ended."""
        wait_until(lambda: self.run(run_id).is_finished, f"the run has not ended; {self.log('code')}")
        return self.run(run_id)

    def relaunches(self, run_id: str) -> list[str]:
        """Runs that the daemon launched for a failed one."""
        filters = dg.RunsFilter(tags={"dagster/parent_run_id": run_id})
        return [run.run_id for run in self.instance.get_runs(filters)]

    def ask(self, query: str, variables: Mapping[str, Any], expected: str) -> dict[str, Any]:
        """As `ask`, of this deployment's webserver."""
        return ask(f"http://127.0.0.1:{self.url_port}/graphql", query, variables, expected)

    def log(self, name: str) -> str:
        """The last lines of a process's log."""
        return (self.home / f"{name}.log").read_text(errors="replace")[-3000:]

    def _run(self, name: str, *arguments: str) -> None:
        with (self.home / f"{name}.log").open("wb") as log:
            environment = {**os.environ, "DAGSTER_HOME": str(self.home), **self._environment}
            command = [sys.executable, "-W", "ignore", *arguments]
            self._processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def _serves_jobs(self) -> bool:
        for name, process in zip(("code", "web", "daemon"), self._processes, strict=True):
            assert process.poll() is None, self.log(name)
        query = "{answer: repositoriesOrError{__typename ...on RepositoryConnection{nodes{pipelines{name}}}}}"
        try:
            answer = self.ask(query, {}, "RepositoryConnection")
        except OSError:  # it does not listen yet
            return False
        return any(repository["pipelines"] for repository in answer["nodes"])


@contextmanager
def deployed(
    home: Path, *, project: str = "projects.py", location: str = "tests", **environment: str
) -> Iterator[Deployment]:
    """A deployment of a file beside this one, with its home in `home`."""
    deployment = Deployment(home, environment, project, location)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()
