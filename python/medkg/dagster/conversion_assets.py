"""The way of PDF to `documents`: pdf_metadata → pdfs → conversions → documents, which is a gate.

Converting takes minutes and needs no worker meanwhile. So the run that hands the files in ends; `conversion_sensor`
asks the docling-serve how far it is, and launches the second run, which begins at the gate, when all is done. A gate
that is launched before that fails, says how many are missing, and keeps what it has got.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg

from medkg.dagster import conversion, metadata
from medkg.dagster.asset_rules import log_progress, refusal, report_set_aside, require_tenant
from medkg.dagster.choices import DocumentsConfig, Pipeline
from medkg.dagster.conversion import ConversionStorage
from medkg.dagster.document_assets import documents_output, list_documents
from medkg.dagster.io_manager import storage_path
from medkg.dagster.outputs import ConversionSet, DocumentSet
from medkg.dagster.resource import GpuServicesResource
from medkg.dagster.tenant import TENANT_TAG
from medkg.errors import ServiceUnavailableError

TASKS_KEY: Final = "medkg/tasks"
"""Metadata of `conversions` that names what the docling-serve works on."""
_SENSOR_SECONDS: Final = 4.0
"""What one evaluation of the sensor may take; Dagster's daemon has other sensors to evaluate."""
_EVENTS: Final = 50


def conversion_assets(pipeline: Pipeline, docling_serve: str) -> list[dg.AssetsDefinition]:
    """Makes `pdf_metadata`, `pdfs`, `conversions` and the gate `documents`."""

    def storage(context: dg.AssetExecutionContext, tenant: str) -> ConversionStorage:
        return ConversionStorage(storage_path(pipeline.storage, context.instance), tenant=tenant)

    @pipeline.asset("pdf_metadata", "The documents there are: where, which version, how large.", kinds={"files"})
    def pdf_metadata(
        context: dg.AssetExecutionContext, config: DocumentsConfig, gpu_services: GpuServicesResource
    ) -> dg.Output[DocumentSet]:
        return documents_output(context, pipeline, list_documents(context, pipeline, config, gpu_services))

    @pipeline.asset("pdfs", "The PDF, kept as they were listed.", kinds={"pdf"}, after=["pdf_metadata"])
    def pdfs(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, pdf_metadata: DocumentSet
    ) -> dg.Output[DocumentSet]:
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, pdf_metadata.tenant, "pdf_metadata")
            kept, failed = conversion.keep_pdfs(
                pdf_metadata.documents, storage(context, run.tenant), progress=log_progress(context, "PDF kept")
            )
        return documents_output(context, pipeline, DocumentSet(run.tenant, kept, failed))

    @pipeline.asset("conversions", "What a docling-serve converts.", kinds={"docling"}, after=["pdfs"])
    def conversions(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, pdfs: DocumentSet
    ) -> dg.Output[ConversionSet]:
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, pdfs.tenant, "pdfs")
            made, failed = conversion.submit(
                pdfs.documents,
                storage(context, run.tenant),
                docling_serve=docling_serve,
                progress=log_progress(context, "documents handed in"),
            )
        report_set_aside(context, failed, left=len(made), what="document", may_be_empty=pipeline.may_be_empty)
        tasks = [one.task for one in made if one.task]
        return dg.Output(
            ConversionSet(run.tenant, made, failed),
            metadata={
                "dagster/row_count": len(made),
                "medkg/tenant": run.tenant,
                "medkg/waiting": len(tasks),
                TASKS_KEY: dg.MetadataValue.json(tasks),
                **metadata.set_aside(failed),
            },
        )

    @pipeline.asset("documents", "The documents, converted: a gate.", kinds={"docling"}, after=["conversions"])
    def documents(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, conversions: ConversionSet
    ) -> dg.Output[DocumentSet]:
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, conversions.tenant, "conversions")
            found, waiting, failed = conversion.collect(
                conversions.conversions,
                storage(context, run.tenant),
                docling_serve=docling_serve,
                progress=log_progress(context, "conversions looked at"),
            )
        if waiting:
            msg = (
                f"{len(waiting)} of {len(conversions.conversions)} conversions are not done; what is done is kept."
                " Launch this again later, or leave it to conversion_sensor"
            )
            raise refusal(msg)
        return documents_output(context, pipeline, DocumentSet(run.tenant, found, failed))

    return [pdf_metadata, pdfs, conversions, documents]


def conversion_sensor(
    assets: Sequence[dg.AssetsDefinition],
    *,
    docling_serve: str,
    job_name: str,
    minimum_interval_seconds: int = 30,
) -> dg.SensorDefinition:
    """A sensor that launches what begins at the gate, once for each set of conversions, when that is done.

    Args:
        assets: What `medkg_assets(manual=True)` made.
        docling_serve: Address of the docling-serve.
        job_name: The job from `documents` on.
        minimum_interval_seconds: How often it asks.
    """
    key = next(asset.key for asset in assets if asset.key.path[-1] == "conversions")

    @dg.sensor(
        name="_".join([*key.path[:-1], "conversion_sensor"]),
        job_name=job_name,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Waits for docling-serve, then launches the rest of the pipeline.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        after, waiting = _remembered(context.cursor)
        found = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, after_storage_id=after), limit=_EVENTS, ascending=True
        )
        for record in found.records:
            after = record.storage_id
            waiting.append(_handed_in(record))
        ready, waiting, trouble = _look(waiting, docling_serve)
        done = [
            dg.RunRequest(
                run_key=f"{one['run_id']}:{one['partition']}",
                partition_key=one["partition"],
                tags={TENANT_TAG: one["tenant"]},
            )
            for one in ready
        ]
        tasks = sum(len(one["tasks"]) for one in waiting)
        reason = trouble or (f"docling-serve works on {tasks} documents" if tasks else "nothing to convert")
        return dg.SensorResult(
            run_requests=done,
            skip_reason=None if done else dg.SkipReason(reason),
            cursor=json.dumps({"after": after, "waiting": waiting}),
        )

    return sensor


def _look(
    waiting: Sequence[dict[str, Any]], docling_serve: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str | None]:
    """Asks for each task that is not done yet, while there is time.

    Returns:
        The sets that are done, those that are not, without their tasks that are, and what is wrong with the server.
    """
    from medkg.chunking.docling_serve import is_finished  # noqa: PLC0415 - an extra

    deadline = time.monotonic() + _SENSOR_SECONDS
    trouble: str | None = None

    def unfinished(tasks: Sequence[str]) -> Iterator[str]:
        nonlocal trouble
        for task in tasks:
            left = deadline - time.monotonic()
            try:
                if trouble is None and left > 0 and is_finished(Path(task), docling_serve, task, timeout=left):
                    continue
            except ServiceUnavailableError as error:
                trouble = str(error)
            except ValueError:  # the server does not know it: the gate says so
                continue
            yield task

    looked = [{**one, "tasks": list(unfinished(one["tasks"]))} for one in waiting]
    return [one for one in looked if not one["tasks"]], [one for one in looked if one["tasks"]], trouble


def _remembered(cursor: str | None) -> tuple[int | None, list[dict[str, Any]]]:
    if cursor is None:
        return None, []
    found = json.loads(cursor)
    return found["after"], found["waiting"]


def _handed_in(record: dg.EventLogRecord) -> dict[str, Any]:
    made = record.asset_materialization
    if made is None:
        msg = f"event {record.storage_id} is no materialization"
        raise ValueError(msg)
    return {
        "run_id": record.run_id,
        "partition": record.partition_key,
        "tenant": made.metadata["medkg/tenant"].value,
        "tasks": made.metadata[TASKS_KEY].value,
    }
