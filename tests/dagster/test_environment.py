"""Development, staging and production: what each starts, takes and refuses."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import pytest

import medkg
from medkg.dagster import FAILURE_CLASS_KEY, medkg_definitions
from medkg.dagster.environment import services_of
from medkg.local import LocalServer
from tests.server.authority import Authority

pytestmark = pytest.mark.requirement("isolation 11.3")

MODELS = {"embedding_model": "all-MiniLM-L6-v2", "reranking_model": "medkg-reranker-minilm"}
PATIENCE = 60.0


def refused(env: str, folder: Path, **models: str) -> dict[str, str]:
    """Every problem that is told, by its place."""
    with pytest.raises(medkg.ConfigError) as caught:
        medkg_definitions(documents="documents", env=env, config=folder, **models)
    problems = dict(caught.value.field_violations)
    assert all(place in str(caught.value) for place in problems), "the message has them all"
    return problems


def test_production_refuses_plaintext_and_defaults_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "prod.toml").write_text(
        'addresses = ["http://127.0.0.1:7070", "https://gpu-2:7070"]\nallow_plaintext = true\n'
        'gpu_addresses = ["dns+http://gpu:7070"]\n[cache]\nredis = "redis://cache:6379"\n'
        '[registry]\nredis = "redis://registry:6379"\n[tls]\nca_file = "ca.pem"\n'
    )
    written = {"addresses[0]", "gpu_addresses[0]", "allow_plaintext", "cache.redis", "registry.redis"}
    unsaid = {"tls.cert_file", "tls.key_file", "timeout", "embedding_model", "reranking_model"}
    # Addresses and a registry contradict each other: that is the client's own problem, told beside ours.
    problems = refused("prod", tmp_path)
    assert written | unsaid < set(problems)
    assert "https://" in problems["addresses[0]"]
    assert "rediss://" in problems["cache.redis"]


def test_a_misspelt_key_hides_no_other_problem(tmp_path: Path) -> None:
    (tmp_path / "prod.toml").write_text('adress = "https://gpu:7070"\n')
    problems = refused("prod", tmp_path, **MODELS)
    assert any(place.endswith("adress") for place in problems)
    assert {"address", "timeout", "tls.ca_file", "tls.cert_file", "tls.key_file"} <= set(problems)


def test_a_variable_counts_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prod.toml").write_text("timeoutt = 3\n")
    monkeypatch.setenv("MEDKG_ADDRESS", "https://gpu:7070")
    monkeypatch.setenv("MEDKG_TLS_CA_FILE", "ca.pem")
    problems = set(refused("prod", tmp_path, **MODELS))
    assert not problems & {"address", "tls.ca_file"}
    assert "tls.cert_file" in problems


@pytest.mark.parametrize("env", ["staging", "prod"])
def test_only_development_does_without_addresses(env: str, tmp_path: Path) -> None:
    (tmp_path / f"{env}.toml").write_text("timeout = 10\n")
    assert "address" in refused(env, tmp_path, **MODELS)
    (tmp_path / f"{env}.toml").unlink()
    assert refused(env, tmp_path, **MODELS), "a file that is not there"


def test_staging_takes_what_the_client_takes(tmp_path: Path) -> None:
    (tmp_path / "staging.toml").write_text('address = "http://127.0.0.1:7070"\ntenant = "clinic"\n')
    services = services_of("staging", tmp_path)
    assert services.client_config() == medkg.ClientConfig(address="http://127.0.0.1:7070", tenant="clinic")
    assert not services.require_gpu


def test_an_environment_and_a_resource_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(medkg.ConfigError, match="give one of them"):
        medkg_definitions(documents="d", env="dev", config=tmp_path, services=services_of_address())
    with pytest.raises(medkg.ConfigError, match="no such environment"):
        medkg_definitions(documents="d", env="production")


def services_of_address() -> medkg.dagster.GpuServicesResource:
    return medkg.dagster.GpuServicesResource(address="http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tls_server(
    start_server: Callable[..., LocalServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Authority]]:
    """A server on the CPU that demands certificates."""
    authority = Authority(tmp_path_factory.mktemp("authority"), "clinic")
    server = start_server(arguments=authority.flags())
    yield server.address.replace("http://", "https://"), authority
    server.stop()


def test_production_refuses_a_server_on_a_cpu(tls_server: tuple[str, Authority], tmp_path: Path) -> None:
    address, authority = tls_server
    certificate, key = authority.client("clinic")
    (tmp_path / "prod.toml").write_text(
        f'address = "{address}"\ntenant = "clinic"\ntimeout = 20\n'
        f'[tls]\nca_file = "{authority.certificate}"\ncert_file = "{certificate}"\nkey_file = "{key}"\n'
    )
    services = services_of("prod", tmp_path, pipeline=MODELS)

    @dg.op
    def embed(context: dg.OpExecutionContext, gpu_services: medkg.dagster.GpuServicesResource) -> None:
        with gpu_services.for_run(context) as run:
            run.embedding.embed(["fever"])

    @dg.job(resource_defs={"gpu_services": services})
    def production() -> None:
        embed()

    result = production.execute_in_process(raise_on_error=False)
    (event,) = (event for event in result.all_events if event.is_step_failure)
    reported = event.step_failure_data.user_failure_data
    assert reported is not None, event.step_failure_data.error
    assert reported.metadata[FAILURE_CLASS_KEY].value == "CONFIGURATION"
    assert "the embedding service computes on cpu" in str(reported.description)


PROJECT = """
import os, subprocess, sys
import medkg
from medkg.dagster import medkg_definitions

defs = medkg_definitions(documents="documents", env="dev", config=".")
address = defs.resources["gpu_services"].address
if "step" not in sys.argv:
    print(address)
    subprocess.run([sys.executable, __file__, "step"], check=True)
    with medkg.connect(address=address, tenant="dev", timeout=60, max_attempts=60) as services:
        print(services.embedding.embed(["fever"]).usage.device, flush=True)
    sys.stdin.read()
else:
    print(address, flush=True)
"""


@pytest.mark.parametrize("end", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_development_has_a_server_of_its_own(
    end: signal.Signals, tmp_path: Path, gpu_server_binary: Path, minilm_dir: Path, reranker_dir: Path
) -> None:
    """The process of the code location starts it, its children use it, and it ends with that process."""
    (tmp_path / "project.py").write_text(PROJECT)
    environment = {
        "MEDKG_GPU_SERVER": str(gpu_server_binary),
        "MEDKG_EMBEDDING_MODELS": f"all-MiniLM-L6-v2={minilm_dir}",
        "MEDKG_RERANKING_MODELS": f"medkg-reranker-minilm={reranker_dir}",
        "DAGSTER_HOME": str(tmp_path),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        process = subprocess.Popen(
            [sys.executable, "project.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with process:
        try:
            assert process.stdout is not None
            address, of_the_child, device = (process.stdout.readline().strip() for _ in range(3))
            assert address == of_the_child
            assert device == "cpu"
        finally:
            process.send_signal(end)
    url = urlsplit(address)
    deadline = time.monotonic() + PATIENCE
    while listens(url.hostname or "", url.port or 0):
        assert time.monotonic() < deadline, "the server outlives the process that started it"
        time.sleep(0.05)


def listens(host: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def test_development_says_what_it_would_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDKG_GPU_SERVER", str(tmp_path / "not-there"))
    assert set(refused("dev", tmp_path)) == {
        "MEDKG_GPU_SERVER",
        "MEDKG_EMBEDDING_MODELS",
        "MEDKG_RERANKING_MODELS",
    }
