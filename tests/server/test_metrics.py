"""`GET /metrics`: what Prometheus reads, over HTTP as Prometheus does."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import urllib.request
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

    from .authority import Authority

LISTEN = ("--metrics-listen", "127.0.0.1:0")
ONLY_GPU = {"services": ("gpu",), "embedding_models": {}, "reranking_models": {}, "data_dir": None}


def endpoint(server: LocalServer) -> str:
    """HOST:PORT that the server logged."""
    told = [line for line in server.events() if str(line.get("message", "")).startswith("metrics are served on")]
    return str(told[-1]["address"])


def scrape(server: LocalServer) -> dict[str, float]:
    """Sample name and labels to value."""
    with urllib.request.urlopen(f"http://{endpoint(server)}/metrics", timeout=30) as answer:
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        text = answer.read().decode()
    assert text.endswith("# EOF\n")
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in samples}


@pytest.fixture(scope="module")
def measured(start_server: Callable[..., LocalServer]) -> LocalServer:
    return start_server(arguments=LISTEN)


def test_the_cpu_is_told_and_no_memory_is_claimed_for_it(measured: LocalServer) -> None:
    samples = scrape(measured)
    assert samples['medkg_device_info{requested="cpu",active="cpu"}'] == 1
    assert samples["medkg_device_ready"] == 1
    assert samples["medkg_start_time_seconds"] > 1.7e9
    assert (samples["medkg_device_memory_warn_ratio"], samples["medkg_device_memory_critical_ratio"]) == (0.85, 0.95)
    assert not any(re.match(r"medkg_device_memory_(used|total|pressure)", name) for name in samples)


def test_models_and_collections_are_counted_as_they_come_and_go(measured: LocalServer) -> None:
    with medkg.connect(address=measured.address, tenant="metrics") as services:
        loaded = sum(m.memory_bytes for m in [*services.embedding.models(), *services.reranking.models()])
        before = scrape(measured)
        assert before["medkg_model_memory_bytes"] == loaded > 0
        services.vector.create_collection("counted", 4)
        services.vector.upsert("counted", ["a", "b"], np.eye(2, 4, dtype=np.float32))
        filled = scrape(measured)
        served = 'medkg_collections{state="served"}'
        assert (filled[served], filled["medkg_collection_points"]) == (
            before[served] + 1,
            before["medkg_collection_points"] + 2,
        )
        services.vector.drop_collection("counted")
        assert scrape(measured) == before
    assert "metrics" not in str(before), "no tenant is a label"


def test_a_damaged_collection_is_counted(start_server: Callable[..., LocalServer], tmp_path: Path) -> None:
    folder = tmp_path / "acme"
    folder.mkdir()
    (folder / "notes.redb").write_bytes(b"no database" * 1_000)
    server = start_server(
        services=("vector",), embedding_models={}, reranking_models={}, data_dir=tmp_path, arguments=LISTEN
    )
    samples = scrape(server)
    assert (samples['medkg_collections{state="served"}'], samples['medkg_collections{state="damaged"}']) == (0, 1)


def test_a_server_without_its_gpu_says_so(start_server: Callable[..., LocalServer]) -> None:
    server = start_server(**ONLY_GPU, device="cuda", arguments=LISTEN, env={"CUDA_VISIBLE_DEVICES": ""})
    samples = scrape(server)
    assert samples['medkg_device_info{requested="cuda:0",active=""}'] == 1
    assert samples["medkg_device_ready"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405)]
)
def test_nothing_else_is_served_there(measured: LocalServer, method: str, path: str, status: int) -> None:
    with closing(http.client.HTTPConnection(endpoint(measured), timeout=30)) as connection:
        connection.request(method, path)
        assert connection.getresponse().status == status


def test_grpc_is_not_served_there_and_metrics_nowhere_else(measured: LocalServer) -> None:
    address = f"http://{endpoint(measured)}"
    with (
        medkg.connect(address=address, tenant="a", max_attempts=1, timeout=10) as services,
        pytest.raises(medkg.MedkgError),
    ):
        services.gpu.status()
    grpc_address = measured.address.removeprefix("http://")
    with closing(http.client.HTTPConnection(grpc_address, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.getresponse()


def test_with_tls_a_scraper_shows_a_certificate(
    start_server: Callable[..., LocalServer], authority: Authority, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the curl command is not installed")
    certificate, key = authority.issue("scraped")
    files = {"--tls-cert": certificate, "--tls-key": key, "--tls-client-ca": authority.certificate}
    server = start_server(**ONLY_GPU, arguments=[*LISTEN, *(str(part) for pair in files.items() for part in pair)])
    own, own_key = authority.issue("prometheus")
    url = f"https://{endpoint(server)}/metrics"
    # urllib speaks no HTTP/2, which is what TLS agrees on here; curl does, as Prometheus does.
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--cacert", authority.certificate, url]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    answered = subprocess.run(
        [*command, "--cert", own, "--key", own_key], capture_output=True, text=True, timeout=60, check=True
    )
    assert "medkg_device_ready 1" in answered.stdout
    expiry = re.search(r"^medkg_certificate_expiry_seconds (\d+)$", answered.stdout, re.MULTILINE)
    shown = subprocess.run(
        ["openssl", "x509", "-enddate", "-noout", "-dateopt", "iso_8601", "-in", certificate],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    end = datetime.strptime(shown.stdout.strip().removeprefix("notAfter="), "%Y-%m-%d %H:%M:%SZ").replace(
        tzinfo=timezone.utc
    )
    assert expiry is not None
    assert int(expiry[1]) == end.timestamp()


def test_other_machines_reach_it_only_if_that_is_asked_for(gpu_server_binary: Path) -> None:
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--metrics-listen", "0.0.0.0:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})
    assert ended.returncode == 64
    assert "--metrics-listen" in ended.stderr
