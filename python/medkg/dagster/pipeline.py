"""`medkg_definitions`: the whole pipeline as one `dg.Definitions`, for a project that starts with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from medkg.dagster.assets import medkg_assets
from medkg.dagster.checks import medkg_asset_checks
from medkg.dagster.choices import RESOURCE_KEY
from medkg.dagster.conversion_assets import conversion_sensor
from medkg.dagster.environment import services_of
from medkg.dagster.executor import forkserver_executor, gpu_fail_fast
from medkg.dagster.io_manager import TableIOManager
from medkg.dagster.resource import GpuServicesResource
from medkg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from medkg.dagster.environment import Environment

JOB_NAME = "literature"


def medkg_definitions(
    *,
    documents: str | PathLike[str] | Sequence[str | PathLike[str]],
    env: Environment | None = None,
    config: str | PathLike[str] | None = None,
    services: GpuServicesResource | None = None,
    storage: str | None = None,
    executor: dg.ExecutorDefinition = forkserver_executor,
    job_name: str = JOB_NAME,
    **assets: Any,
) -> dg.Definitions:
    """Resource, assets and their checks, a job over all of them, and an executor that fails fast on GPU loss.

    With batches the job works on one batch, or in a backfill on each; a second job, `JOB_NAME_answers`, asks questions
    of all. With `manual=True` a job `JOB_NAME_convert` hands PDF to a docling-serve, and a sensor launches the job when
    they are converted.

    Args:
        documents: Files or folders of documents.
        env: `dev`, `staging` or `prod`: how gpu-server is reached is then said by TOML files and the environment, and
            prod refuses plaintext, CPUs and defaults (`medkg.dagster.environment`).
        config: Folder of `dev.toml`, `staging.toml` and `prod.toml`.
        services: The resource, instead of `env`; by default the address in the environment variable `MEDKG_ADDRESS`,
            and no tenant: each run then names one in its tag `medkg/tenant_id`.
        storage: Folder or address (`s3://...`) of the assets' tables and of the vectors that are there already; by
            default in the Dagster instance's storage.
        executor: Runs the steps; wrapped in `gpu_fail_fast`.
        job_name: Name of the job.
        **assets: Anything else `medkg_assets` takes.

    Raises:
        medkg.ConfigError: Arguments or the environment cannot be used; of the environment every problem is listed.
    """
    if env is not None:
        if services is not None:
            msg = "env, services: give one of them; env makes the resource out of its file"
            raise ConfigError(msg)
        services = services_of(env, config, pipeline=assets)
    pipeline = medkg_assets(documents=documents, **{"storage": storage, **assets})
    return dg.Definitions(
        assets=pipeline,
        asset_checks=medkg_asset_checks(pipeline),
        jobs=[
            dg.define_asset_job(name, selection=dg.AssetSelection.assets(*members))
            for name, members in _jobs(pipeline, job_name).items()
        ],
        sensors=(
            [conversion_sensor(pipeline, docling_serve=assets["docling_serve"], job_name=job_name)]
            if assets.get("manual")
            else []
        ),
        resources={
            RESOURCE_KEY: services or GpuServicesResource(address=dg.EnvVar("MEDKG_ADDRESS")),
            "io_manager": TableIOManager(base_path=storage),
        },
        executor=gpu_fail_fast(executor),
    )


def _jobs(pipeline: Sequence[dg.AssetsDefinition], job_name: str) -> dict[str, list[dg.AssetsDefinition]]:
    """The jobs by name: what hands PDF in, what works on documents, and, if that is in batches, what asks them all."""
    names = [asset.key.path[-1] for asset in pipeline]
    head, rest = pipeline[: names.index("documents")], pipeline[names.index("documents") :]
    answers = [asset for asset in rest if asset.partitions_def is None]
    batches = [asset for asset in rest if asset.partitions_def is not None]
    jobs = {job_name: batches, f"{job_name}_answers": answers} if batches else {job_name: answers}
    return {f"{job_name}_convert": list(head), **jobs} if head else jobs
