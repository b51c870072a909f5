"""`medkg_definitions`: the whole pipeline as one `dg.Definitions`, for a project that starts with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from medkg.dagster.assets import medkg_assets
from medkg.dagster.checks import medkg_asset_checks
from medkg.dagster.choices import RESOURCE_KEY
from medkg.dagster.executor import forkserver_executor, gpu_fail_fast
from medkg.dagster.io_manager import TableIOManager
from medkg.dagster.resource import GpuServicesResource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

JOB_NAME = "literature"


def medkg_definitions(
    *,
    documents: str | PathLike[str] | Sequence[str | PathLike[str]],
    services: GpuServicesResource | None = None,
    storage: str | None = None,
    executor: dg.ExecutorDefinition = forkserver_executor,
    job_name: str = JOB_NAME,
    **assets: Any,
) -> dg.Definitions:
    """Resource, assets and their checks, a job over all of them, and an executor that fails fast on GPU loss.

    With batches the job works on one batch, or in a backfill on each; a second job, `JOB_NAME_answers`, asks questions
    of all.

    Args:
        documents: Files or folders of documents.
        services: The resource; by default the address in the environment variable `MEDKG_ADDRESS`, and no tenant:
            each run then names one in its tag `medkg/tenant_id`.
        storage: Folder or address (`s3://...`) of the assets' tables and of the vectors that are there already; by
            default in the Dagster instance's storage.
        executor: Runs the steps; wrapped in `gpu_fail_fast`.
        job_name: Name of the job.
        **assets: Anything else `medkg_assets` takes.
    """
    pipeline = medkg_assets(documents=documents, **{"storage": storage, **assets})
    checked = medkg_asset_checks(pipeline)
    answers = [asset for asset in pipeline if asset.partitions_def is None]
    batches = [asset for asset in pipeline if asset not in answers]
    jobs = {job_name: batches, f"{job_name}_answers": answers} if batches else {job_name: answers}
    return dg.Definitions(
        assets=pipeline,
        asset_checks=checked,
        jobs=[
            dg.define_asset_job(name, selection=dg.AssetSelection.assets(*members)) for name, members in jobs.items()
        ],
        resources={
            RESOURCE_KEY: services or GpuServicesResource(address=dg.EnvVar("MEDKG_ADDRESS")),
            "io_manager": TableIOManager(base_path=storage),
        },
        executor=gpu_fail_fast(executor),
    )
