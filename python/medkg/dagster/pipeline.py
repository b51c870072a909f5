"""`medkg_definitions`: the whole pipeline as one `dg.Definitions`, for a project that starts with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

from medkg.dagster.assets import RESOURCE_KEY, medkg_assets
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
    """Resource, assets, a job over all of them, and an executor that fails fast on GPU loss.

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
    pipeline = medkg_assets(documents=documents, **{"embedding_store": storage, **assets})
    return dg.Definitions(
        assets=pipeline,
        jobs=[dg.define_asset_job(job_name, selection=dg.AssetSelection.assets(*pipeline))],
        resources={
            RESOURCE_KEY: services or GpuServicesResource(address=dg.EnvVar("MEDKG_ADDRESS")),
            "io_manager": TableIOManager(base_path=storage),
        },
        executor=gpu_fail_fast(executor),
    )
