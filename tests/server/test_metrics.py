"""`GET /metrics`: what Prometheus reads, over HTTP as Prometheus does."""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import urllib.request
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest

import medkg
from medkg.client.native import native

from .operators import eventually
from .played import PlayedGpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer
    from tests.services import Redis

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
        emptied = scrape(measured)
        gauges = [name for name in before if "_total" not in name]
        assert {name: emptied[name] for name in gauges} == {name: before[name] for name in gauges}
    assert "metrics" not in str(before), "no tenant is a label"


def test_the_index_of_sparse_vectors_is_counted_as_it_comes_and_goes(measured: LocalServer) -> None:
    with medkg.VectorClient(address=measured.address, tenant="metrics") as vectors:
        before = scrape(measured)["medkg_collection_sparse_index_bytes"]
        vectors.create_collection("words", 4, sparse_dimension=100)
        row = (np.array([0, 2]), np.array([3, 9]), np.ones(2, dtype=np.float32))
        vectors.upsert("words", ["a"], np.ones((1, 4), dtype=np.float32), sparse=row)
        assert scrape(measured)["medkg_collection_sparse_index_bytes"] >= before + 2 * 8
        vectors.drop_collection("words")
        assert scrape(measured)["medkg_collection_sparse_index_bytes"] == before


@pytest.mark.requirement("isolation 2.4")
def test_what_is_done_to_collections_is_counted_and_stays_so_when_they_are_dropped(measured: LocalServer) -> None:
    def told() -> dict[str, float]:
        return {name.removeprefix("medkg_"): value for name, value in scrape(measured).items()}

    with medkg.VectorClient(address=measured.address, tenant="metrics") as vectors:
        before = told()
        vectors.create_collection("used", 4)
        vectors.upsert("used", ["a", "b", "c"], np.eye(3, 4, dtype=np.float32))
        vectors.search("used", np.ones((5, 4), dtype=np.float32), k=2)
        vectors.search("used", np.ones((1, 4), dtype=np.float32), k=2)
        vectors.delete("used", ["a"])
        used = told()
        assert used["collection_memory_bytes"] - before["collection_memory_bytes"] >= 2 * 4 * 4
        assert used["collection_sparse_index_bytes"] == before["collection_sparse_index_bytes"]
        vectors.drop_collection("used")
        dropped = told()
    assert dropped["collection_memory_bytes"] == before["collection_memory_bytes"]
    counts = {
        "searches_total": 2,
        "search_queries_total": 6,
        "upserts_total": 1,
        "upserted_points_total": 3,
        "deletes_total": 1,
        "deleted_points_total": 1,
        "search_duration_seconds_count": 2,
        'search_duration_seconds_bucket{le="+Inf"}': 2,
    }
    for after in (used, dropped):
        assert {name: after[name] - before[name] for name in counts} == counts
    assert dropped["search_duration_seconds_sum"] > before["search_duration_seconds_sum"]


@pytest.mark.requirement("isolation 2.2")
def test_the_gpus_memory_is_told_by_who_holds_it_and_whether_the_lease_store_answers(
    lend: Callable[..., LocalServer], redis: Redis, tmp_path: Path
) -> None:
    played = PlayedGpu(tmp_path, total=64 * 2**20)
    roles = {"services": ("gpu", "vector"), "data_dir": tmp_path / "data"}
    server = lend(played, *LISTEN, "--lease-store", redis.url, **roles)
    with medkg.connect(address=server.address, tenant="a", timeout=30) as services:
        services.gpu.allocate(2**20)
        services.vector.create_collection("c", 1024)
        services.vector.upsert("c", ["a"], np.ones((1, 1024), dtype=np.float32))
        samples = scrape(server)
        held = re.compile(r'medkg_device_memory_held_bytes{device="cuda:0",holder="(\w+)"}')
        by_holder = {match[1]: value for name, value in samples.items() if (match := held.match(name))}
        assert by_holder == {"models": 0, "collections": 4096, "leases": 2**20, "other_servers": 0}
        assert samples["medkg_lease_store_up"] == 1
        redis.stop()
        eventually(lambda: scrape(server)["medkg_lease_store_up"] == 0)


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


def test_with_tls_a_scraper_shows_a_certificate(start_server: Callable[..., LocalServer], authority: Authority) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the curl command is not installed")
    flags = authority.flags()
    server = start_server(**ONLY_GPU, arguments=[*LISTEN, *flags])
    url = f"https://{endpoint(server)}/metrics"
    # urllib speaks no HTTP/2, which is what TLS agrees on here; curl does, as Prometheus does.
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "--cacert", authority.certificate, url]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0

    def shown(certificate: Path, key: Path) -> str:
        whole = [*command, "--cert", certificate, "--key", key]
        return subprocess.run(whole, capture_output=True, text=True, timeout=60, check=True).stdout

    text = shown(*authority.client())
    assert "medkg_device_ready 1" in text
    expiry = re.search(r"^medkg_certificate_expiry_seconds (\d+)$", text, re.MULTILINE)
    [[*_, end, _, _]], _, _ = native.certs_inspect(flags[1], None)
    assert expiry is not None
    assert int(expiry[1]) == end
    # A tenant has no business there.
    bound = shown(*authority.client("a"))
    assert "bound to tenants" in bound
    assert "medkg_device_ready" not in bound


def test_other_machines_reach_it_only_if_that_is_asked_for(gpu_server_binary: Path) -> None:
    command = [gpu_server_binary, "--services", "gpu", "--device", "cpu", "--metrics-listen", "0.0.0.0:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={})
    assert ended.returncode == 64
    assert "--metrics-listen" in ended.stderr
