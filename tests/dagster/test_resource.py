"""What is configured in Dagster reaches the client: addresses, retries, breaker, identity."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

import medkg
from medkg.dagster import GpuServicesResource
from medkg.local import LocalServer

pytestmark = pytest.mark.requirement("isolation 11.2")


@dg.op
def ask_every_service(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> list[str]:
    """One call to each of the four services."""
    with gpu_services.for_run(context) as run:
        ranking = run.reranking.rerank("fever", ["pyrexia", "fracture"]).documents
        return [
            run.gpu.status().state,
            run.embedding.models()[0].name,
            str(sorted(one.index for one in ranking)),
            str(run.vector.collections()),
        ]


@dg.job(resource_defs={"gpu_services": GpuServicesResource()})
def everything() -> None:
    """Asks every service."""
    ask_every_service()


def run(services: dict[str, object]) -> dg.ExecuteInProcessResult:
    config = {"resources": {"gpu_services": {"config": services}}}
    return everything.execute_in_process(run_config=config, raise_on_error=False)


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, str]:
    """Class and description of the step's failure."""
    (event,) = (event for event in result.all_events if event.is_step_failure)
    reported = event.step_failure_data.user_failure_data
    assert reported is not None, event.step_failure_data.error
    return str(reported.metadata["medkg/failure_class"].value), str(reported.description)


def test_every_setting_reaches_the_clients_configuration() -> None:
    settings = {
        "embedding_addresses": ["https://a:1"],
        "reranking_addresses": ["https://b:1"],
        "vector_addresses": ["https://c:1"],
        "gpu_addresses": ["https://d:1"],
        "addresses": ["https://e:1", "https://f:1"],
        "tenant": "clinic",
        "timeout": 20.0,
        "connect_timeout": 2.0,
        "max_batch_texts": 64,
        "max_batch_bytes": 1_000_000,
        "max_concurrent_batches": 2,
    }
    retry = {"max_attempts": 2, "backoff_initial": 0.1, "backoff_max": 1.0, "retry_budget": 0.1}
    breaker = {"failures": 3, "cooldown": 7.0}
    tls = {"ca_file": "ca.pem", "cert_file": "cert.pem", "key_file": "key.pem", "server_name": "gpu"}
    resource = GpuServicesResource(**settings, retry=retry, breaker=breaker, tls=tls)
    assert resource.client_config() == medkg.ClientConfig(
        **settings, **retry, breaker_failures=3, breaker_cooldown=7.0, tls=medkg.TlsConfig(**tls)
    )
    assert GpuServicesResource().client_config() == medkg.ClientConfig(), "defaults are the client's own"


def test_each_service_can_have_an_address_of_its_own(server: LocalServer) -> None:
    services = ("embedding", "reranking", "vector", "gpu")
    addresses = {f"{name}_addresses": [server.address] for name in services}
    result = run({**addresses, "tenant": "clinic"})
    assert result.output_for_node("ask_every_service")[0] == "ready"


def test_a_configuration_that_cannot_work_fails_the_step_for_good() -> None:
    result = run({"address": "not-an-address", "tenant": "clinic"})
    assert not result.success
    failure_class, description = failure(result)
    assert failure_class == "CONFIGURATION"
    assert "not-an-address" in description


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority and two certificates it signed: `server`, for 127.0.0.1, and `worker`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, so there is nothing to make certificates with")
    folder = tmp_path_factory.mktemp("identities")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    authority = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", *authority)
    for name, usage in (("server", "serverAuth"), ("worker", "clientAuth")):
        (folder / f"{name}.ext").write_text(
            f"subjectAltName=IP:127.0.0.1,DNS:{name}\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n",
            encoding="utf-8",
        )
        openssl("req", *key[:-2], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed_by, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return folder


def test_the_worker_proves_its_identity_over_tls(start_server: Callable[..., LocalServer], identities: Path) -> None:
    server = start_server(
        arguments=[
            *("--tls-cert", str(identities / "server.pem"), "--tls-key", str(identities / "server.key")),
            *("--tls-client-ca", str(identities / "ca.pem")),
        ]
    )
    address = server.address.replace("http://", "https://")
    trust = {"ca_file": str(identities / "ca.pem")}
    identity = {"cert_file": str(identities / "worker.pem"), "key_file": str(identities / "worker.key")}
    result = run({"address": address, "tenant": "clinic", "tls": {**trust, **identity}})
    assert result.success
    assert result.output_for_node("ask_every_service")[0] == "ready"

    nobody = {"address": address, "tenant": "clinic", "tls": trust, "timeout": 5.0, "step_retries": 0}
    assert not run(nobody).success, "a worker without an identity was served"
    server.stop()
