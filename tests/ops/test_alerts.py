"""The alerts of ops/prometheus, judged by Prometheus itself, on a real gpu-server's metrics."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.services import free_port, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "ops" / "prometheus"


class Prometheus:
    """A process of its own that scrapes one address ten times a second."""

    def __init__(self, folder: Path, target: str) -> None:
        config = (RULES / "prometheus.yml").read_text()
        for text, changed in (("15s", "100ms"), ("127.0.0.1:7072", target), ("alerts.yml", str(RULES / "alerts.yml"))):
            assert text in config
            config = config.replace(text, changed)
        (folder / "prometheus.yml").write_text(config)
        self.url = f"http://127.0.0.1:{free_port()}"
        command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        ]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=10) as answer:  # noqa: S310 - our own address
            return json.load(answer)["data"]

    def eventually(self, path: str, so: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                data = self.get(path)
            except (urllib.error.URLError, ConnectionError):
                data = None
            if data is not None and so(data):
                return data
            assert time.monotonic() < deadline, f"{path}: {data}"
            assert self.process.poll() is None, "prometheus ended"
            time.sleep(0.05)

    def alerts(self, so: Callable[[set[tuple[str, str]]], bool]) -> set[tuple[str, str]]:
        def told(data: Any) -> set[tuple[str, str]]:
            return {(alert["labels"]["alertname"], alert["state"]) for alert in data["alerts"]}

        return told(self.eventually("alerts", lambda data: so(told(data))))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[[LocalServer], Prometheus]]:
    started: list[Prometheus] = []

    def start(server: LocalServer) -> Prometheus:
        lines = [line for line in server.events() if "metrics are served on" in str(line.get("message", ""))]
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Prometheus(folder, str(lines[-1]["address"])))
        return started[-1]

    yield start
    for prometheus in started:
        prometheus.stop()


@pytest.fixture
def only_gpu(start_server: Callable[..., LocalServer]) -> Callable[..., LocalServer]:
    def start(**options: Any) -> LocalServer:
        arguments = ("--metrics-listen", "127.0.0.1:0")
        return start_server(
            services=("gpu",), embedding_models={}, reranking_models={}, data_dir=None, arguments=arguments, **options
        )

    return start


@pytest.mark.requirement("isolation 2.2")
def test_each_alert_fires_when_it_should_and_not_before() -> None:
    for command in (["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]):
        judged = subprocess.run(
            [program("promtool"), *command], cwd=RULES, capture_output=True, text=True, timeout=60, check=False
        )
        assert judged.returncode == 0, judged.stdout + judged.stderr


def test_every_series_that_an_alert_reads_is_told_by_a_server(
    start_server: Callable[..., LocalServer], watch: Callable[[LocalServer], Prometheus]
) -> None:
    server = start_server(arguments=("--metrics-listen", "127.0.0.1:0"))
    prometheus = watch(server)
    prometheus.eventually("query?query=up", lambda data: [s["value"][1] for s in data["result"]] == ["1"])
    names = set(prometheus.get("label/__name__/values"))
    read = {name for name in (RULES / "alerts.yml").read_text().replace("(", " ").split() if name.startswith("medkg_")}
    read = {name.partition("{")[0].partition("[")[0] for name in read}
    # A CPU has no pressure, which is a test of the crate; without TLS there is no certificate, without Redis no lease
    # store (test_metrics.py).
    absent = {"medkg_device_memory_pressure", "medkg_certificate_expiry_seconds", "medkg_lease_store_up"}
    assert read - names == absent
    # Pending: it fires after five minutes.
    assert prometheus.alerts(bool) == {("ComputesOnTheCpu", "pending")}


def test_a_server_without_its_gpu_is_told_at_once_and_one_that_is_gone_too(
    only_gpu: Callable[..., LocalServer], watch: Callable[[LocalServer], Prometheus]
) -> None:
    server = only_gpu(device="cuda", env={"CUDA_VISIBLE_DEVICES": ""})
    prometheus = watch(server)
    prometheus.alerts(lambda alerts: ("GpuUnavailable", "firing") in alerts)
    server.kill()
    prometheus.alerts(lambda alerts: ("GpuServerDown", "pending") in alerts)
