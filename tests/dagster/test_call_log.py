"""Every call is in the log under its request id, and what the calls cost is in the metadata, of assets and ops."""

import base64
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import dagster as dg
import pytest

import medkg
from medkg.dagster import GpuServicesResource
from medkg.local import LocalServer


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    home = tmp_path_factory.mktemp("home")
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        yield instance


@dg.op
def ask(context: dg.OpExecutionContext, gpu_services: GpuServicesResource) -> str:
    """Three calls that are answered, and one that is refused."""
    with gpu_services.for_run(context) as run:
        result = run.embedding.embed(["gout", "asthma"])
        run.vector.collections()
        assert run.embedding.embed(["sepsis"], request_id="my-own-id").request_id == "my-own-id"
        with pytest.raises(medkg.ModelNotFoundError):
            run.embedding.embed(["gout"], model="no-such-model")
        context.add_output_metadata(run.metadata())
    return result.request_id


@dg.job(resource_defs={"gpu_services": GpuServicesResource.configure_at_launch()})
def asking() -> None:
    """One op."""
    ask()


@pytest.fixture(scope="module")
def asked(instance: dg.DagsterInstance, server: LocalServer) -> dg.ExecuteInProcessResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKG_TRACE_URL", "https://traces.example/trace/{trace_id}")
        config = {"resources": {"gpu_services": {"config": {"address": server.address, "tenant": "clinic"}}}}
        return asking.execute_in_process(instance=instance, run_config=config)


def test_the_steps_log_names_each_call_as_the_servers_log_does(
    asked: dg.ExecuteInProcessResult, instance: dg.DagsterInstance, server: LocalServer
) -> None:
    log = [entry.user_message for entry in instance.all_logs(asked.run_id) if entry.step_key == "ask"]
    told = {line.partition(": request ")[2].partition(",")[0].split()[0]: line for line in log if ": request " in line}
    assert [line.partition(":")[0] for line in told.values()] == [
        "embedding.embed",
        "vector.collections",
        "embedding.embed",
        "embedding.embed",
        "gpu.devices",
    ]
    assert list(told)[2] == "my-own-id"
    assert asked.output_for_node("ask") == next(iter(told))
    assert "failed" in list(told.values())[3]
    assert "ModelNotFoundError" in list(told.values())[3]
    assert set(told) <= {line.get("request_id") for line in server.events()}


def test_an_op_tells_what_its_calls_cost(asked: dg.ExecuteInProcessResult) -> None:
    (event,) = (event for event in asked.all_node_events if event.is_successful_output)
    metadata: dict[str, Any] = dict(event.step_output_data.metadata)
    plain = {name: value.value for name, value in metadata.items() if hasattr(value, "value")}
    assert (plain["medkg/texts"], plain["medkg/calls"], plain["medkg/retries"]) == (3, 2, 0)
    assert (plain["medkg/cache_hits"], plain["medkg/gpu_seconds"]) == (0, 0.0)
    assert plain["medkg/tokens"] >= 9
    assert plain["medkg/compute_seconds"] > 0
    assert plain["medkg/trace"] == f"https://traces.example/trace/{plain['medkg/trace_id']}"
    (device,) = (record.data for record in metadata["medkg/devices"].records)
    assert (device["device"], device["active"]) == ("cpu", True)
    picture = base64.b64decode(plain["medkg/latency"].partition("base64,")[2].removesuffix(")"))
    assert b"Calls by their latency" in picture
    assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 -- our own picture
