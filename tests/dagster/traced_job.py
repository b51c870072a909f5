"""A job whose steps have spans by dagster-otel; step processes import this file by its path."""

import dagster as dg
from dagster_otel import traced

from medkg.dagster import GpuServicesResource


@dg.asset
@traced()
def passages() -> list[str]:
    """Makes no call."""
    return ["acute kidney injury", "community-acquired pneumonia"]


@dg.asset
@traced()
def vectors(context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, passages: list[str]) -> None:
    """Makes one."""
    with gpu_services.for_run(context) as run:
        run.embedding.embed(passages, request_id="of-the-traced-step")


def traced_job() -> dg.JobDefinition:
    """Each step in its own process, as Dagster does it."""
    definitions = dg.Definitions(
        assets=[passages, vectors],
        jobs=[dg.define_asset_job("traced")],
        resources={"gpu_services": GpuServicesResource()},
        executor=dg.multiprocess_executor,
    )
    return definitions.resolve_job_def("traced")
