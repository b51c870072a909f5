"""The first half of the pipeline: documents → chunks.

The assets of the manual way of PDF (`medkg.dagster.conversion_assets`) read files and hand documents on as `documents`
does.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import dagster as dg

from medkg.dagster import ingestion, metadata, pictures, previews
from medkg.dagster.asset_rules import find_model, log_progress, report_set_aside, require_tenant, seconds_since
from medkg.dagster.choices import DocumentsConfig, Pipeline
from medkg.dagster.outputs import ChunkSet, DocumentSet
from medkg.dagster.resource import GpuServicesResource


def documents_asset(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Makes `documents`: the files that there are, read and not parsed."""

    @pipeline.asset("documents", "The documents there are: where, which version, how large.", kinds={"files"})
    def asset(
        context: dg.AssetExecutionContext, config: DocumentsConfig, gpu_services: GpuServicesResource
    ) -> dg.Output[DocumentSet]:
        started = time.perf_counter()
        found = list_documents(context, pipeline, config, gpu_services)
        formats = Counter(ingestion.format_of(document) for document in found.documents)
        told = {
            "medkg/seconds": seconds_since(started),
            "medkg/formats": ", ".join(f"{count} {name}" for name, count in sorted(formats.items())),
        }
        return documents_output(context, pipeline, found, told)

    return asset


def chunks_asset(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Makes `chunks`: the documents parsed, cut, and checked."""

    @pipeline.asset(
        "chunks",
        "Passages of the documents, none longer than the embedding model takes.",
        kinds={"docling", "grpc"},
        after=["documents"],
    )
    def asset(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, documents: DocumentSet
    ) -> dg.Output[ChunkSet]:
        from medkg.chunking import Chunker, ChunkingQuality  # noqa: PLC0415 - Docling is heavy: this is its first use

        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, documents.tenant, "documents")
            # First the tokenizer: that call waits for a model that still loads, and a list of models does not.
            tokenizer = run.embedding.tokenizer(pipeline.embedding_model)
            model = find_model(run.embedding.models(), tokenizer.model)
            quality = ChunkingQuality(model.max_tokens)
            made, failed = ingestion.chunk_documents(
                documents.documents,
                Chunker(tokenizer.json, model.max_tokens, strategy=pipeline.strategy),
                docling_serve=pipeline.docling_serve,
                quality=quality,
                progress=log_progress(context, "documents chunked"),
            )
        report_set_aside(context, failed, left=len(made), what="chunk", may_be_empty=pipeline.may_be_empty)
        for problem in quality.examples:
            context.log.warning("%s", problem)
        counts = [chunk.token_count for chunk in made]
        return dg.Output(
            ChunkSet(run.tenant, made, model.name, model.max_tokens, failed),
            metadata={
                "dagster/row_count": len(made),
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds_since(started),
                "medkg/model": model.name,
                "medkg/strategy": pipeline.strategy,
                "medkg/documents": len({chunk.document_id for chunk in made}),
                "medkg/tokens": sum(counts),
                "medkg/longest": max(counts, default=0),
                "medkg/limit": model.max_tokens,
                "medkg/token_counts": pictures.histogram(
                    counts, title="Chunks by length", unit="tokens", limit=model.max_tokens
                ),
                "medkg/quality": dg.MetadataValue.json(quality.to_dict()),
                "medkg/preview": previews.chunks_table(made),
                **metadata.set_aside(failed),
            },
        )

    return asset


def list_documents(
    context: dg.AssetExecutionContext, pipeline: Pipeline, config: DocumentsConfig, gpu_services: GpuServicesResource
) -> DocumentSet:
    """Reads the files that a step works on, for the run's tenant."""
    with gpu_services.for_run(context) as run:
        found, failed = ingestion.read_documents(
            pipeline.paths_of(run.tenant, config),
            wanted=pipeline.wants(context, config),
            progress=log_progress(context, "files read"),
        )
    return DocumentSet(run.tenant, found, failed)


def documents_output(
    context: dg.AssetExecutionContext, pipeline: Pipeline, found: DocumentSet, told: Mapping[str, Any] | None = None
) -> dg.Output[DocumentSet]:
    """Hands documents on, with what a person wants to see of them and what else is told.

    Raises:
        dg.Failure: There is none to go on with.
    """
    report_set_aside(
        context, found.set_aside, left=len(found.documents), what="document", may_be_empty=pipeline.may_be_empty
    )
    return dg.Output(
        found,
        metadata={
            "dagster/row_count": len(found.documents),
            "medkg/tenant": found.tenant,
            **(told or {}),
            "medkg/preview": previews.documents_table(found.documents),
            **metadata.set_aside(found.set_aside),
        },
    )
