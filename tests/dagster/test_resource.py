"""What is configured in Dagster reaches the client: addresses, retries, breaker, identity."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from medkg.dagster import GpuServicesResource
from medkg.local import LocalServer
from tests.server.authority import Authority
from tests.server.played import PlayedGpu

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


def test_the_worker_proves_its_identity_over_tls(start_server: Callable[..., LocalServer], tmp_path: Path) -> None:
    authority = Authority(tmp_path, "clinic-authority")
    server = start_server(arguments=authority.flags())
    address = server.address.replace("http://", "https://")
    certificate, key = authority.client("clinic")
    trust = {"ca_file": str(authority.certificate)}
    identity = {"cert_file": str(certificate), "key_file": str(key)}
    result = run({"address": address, "tenant": "clinic", "tls": {**trust, **identity}})
    assert result.success
    assert result.output_for_node("ask_every_service")[0] == "ready"

    nobody = {"address": address, "tenant": "clinic", "tls": trust, "timeout": 5.0, "step_retries": 0}
    assert not run(nobody).success, "a worker without an identity was served"
    server.stop()


def test_a_server_on_a_cpu_is_refused_where_a_gpu_is_required(server: LocalServer) -> None:
    result = run({"address": server.address, "tenant": "clinic", "require_gpu": True})
    failure_class, description = failure(result)
    assert failure_class == "CONFIGURATION"
    for service in ("the GPU service", "the embedding service", "the reranking service"):
        assert f"{service} computes on cpu" in description


def test_a_server_with_a_gpu_is_taken_where_one_is_required(
    minilm_dir: Path, reranker_dir: Path, tmp_path: Path
) -> None:
    server = LocalServer(
        PlayedGpu(tmp_path).binary,
        device="cuda",
        embedding_models={"all-MiniLM-L6-v2": minilm_dir},
        reranking_models={"medkg-reranker-minilm": reranker_dir},
        data_dir=tmp_path / "data",
        log_path=tmp_path / "log.jsonl",
        arguments=("--dtype", "f32"),
    ).start()
    try:
        result = run({"address": server.address, "tenant": "clinic", "require_gpu": True})
    finally:
        server.kill()
    assert result.success
    assert result.output_for_node("ask_every_service")[:2] == ["ready", "all-MiniLM-L6-v2"]
