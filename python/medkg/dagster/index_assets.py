"""The second half of the pipeline: chunks → embeddings → vector_index → reranked_answers."""

import time
from typing import Any

import dagster as dg

from medkg.dagster import chunk_embedding, metadata, previews, retrieval
from medkg.dagster.asset_rules import (
    current_index,
    find_model,
    log_progress,
    refusal,
    report_set_aside,
    require_same_chunks,
    require_tenant,
    seconds_since,
)
from medkg.dagster.choices import EMBEDDED_FOLDER, AnswersConfig, Pipeline
from medkg.dagster.embedding_store import EmbeddingStore, Recipe
from medkg.dagster.io_manager import storage_path
from medkg.dagster.outputs import Answer, ChunkSet, EmbeddingSet, IndexSummary
from medkg.dagster.resource import GpuServicesResource
from medkg.dagster.step import StepIdentity


def embeddings_asset(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Makes `embeddings`: the vectors of the chunks, of which only those are computed that are not there yet."""

    @pipeline.asset(
        "embeddings",
        "A vector for each chunk, made by gpu-server.",
        kinds={"rust", "grpc"},
        after=["chunks"],
        on_device=True,
    )
    def asset(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, chunks: ChunkSet
    ) -> dg.Output[EmbeddingSet]:
        started = time.perf_counter()
        step = StepIdentity.of(context)
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, chunks.tenant, "chunks")
            model = find_model(run.embedding.models(), chunks.model)
            recipe = Recipe(model.digest, model.prompts.get(model.default_prompt or "", ""))
            done = chunk_embedding.embed_chunks(
                chunks.chunks,
                run,
                model=model,
                store=EmbeddingStore(
                    storage_path(pipeline.storage, context.instance) / EMBEDDED_FOLDER,
                    tenant=run.tenant,
                    recipe=recipe,
                ),
                run_id=step.run_id,
                set_failing_aside=step.retry_number >= gpu_services.step_retries,
                progress=log_progress(context, "chunks embedded"),
            )
            used = run.metadata()
        report_set_aside(
            context, done.set_aside, left=len(done.chunks), what="embedding", may_be_empty=pipeline.may_be_empty
        )
        vectors, seconds = done.vectors, seconds_since(started)
        return dg.Output(
            chunk_embedding.embedding_set(done, chunks, model=model, prompt=recipe.prompt),
            metadata={
                "dagster/row_count": len(vectors),
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds,
                "medkg/chunks_per_second": round(len(vectors) / max(seconds, 1e-4), 1),
                "medkg/model": model.name,
                "medkg/model_digest": model.digest,
                "medkg/dimension": model.dimension,
                "medkg/texts_embedded": done.computed,
                "medkg/chunks_reused": done.reused,
                **used,
                "medkg/document_similarity": previews.document_similarity(done.chunks, vectors),
                "medkg/preview": previews.embeddings_table(done.chunks, vectors),
                **metadata.set_aside(done.set_aside),
            },
        )

    return asset


def vector_index_asset(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Makes `vector_index`: the vectors as points of the collection."""
    collection = pipeline.collection

    @pipeline.asset(
        "vector_index",
        f"The collection {collection!r} of gpu-server, on its disk and searchable.",
        kinds={"rust", "grpc"},
        after=["chunks", "embeddings"],
        on_device=True,
    )
    def asset(
        context: dg.AssetExecutionContext,
        gpu_services: GpuServicesResource,
        chunks: ChunkSet,
        embeddings: EmbeddingSet,
    ) -> dg.Output[IndexSummary]:
        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, chunks.tenant, "chunks")
            require_tenant(run.tenant, embeddings.tenant, "embeddings")
            require_same_chunks(chunks, embeddings)
            stored = retrieval.chunks_of(embeddings, chunks.chunks)
            made = run.vector.create_collection(collection, embeddings.vectors.shape[1], exist_ok=True)
            inserted, replaced, removed = retrieval.index_chunks(
                stored,
                embeddings.vectors,
                run,
                collection=collection,
                model_digest=embeddings.model_digest,
                progress=log_progress(context, "points stored"),
            )
            stale = retrieval.stale_points(run, collection, embeddings.model_digest) if stored else 0
            now = run.vector.statistics(collection)
            used = run.metadata()
        return dg.Output(
            IndexSummary(
                tenant=run.tenant,
                collection=collection,
                model=embeddings.model,
                dimension=now.dimension,
                metric=now.metric,
                points=now.points,
                inserted=inserted,
                replaced=replaced,
                removed=removed,
                device=now.device,
                model_digest=embeddings.model_digest,
                stale=stale,
            ),
            metadata={
                "dagster/row_count": now.points,
                "dagster/uri": f"medkg://{run.tenant}/{collection}",
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds_since(started),
                "medkg/model": embeddings.model,
                "medkg/model_digest": embeddings.model_digest,
                "medkg/collection": collection,
                "medkg/created": made.created,
                "medkg/metric": now.metric,
                "medkg/dimension": now.dimension,
                "medkg/inserted": inserted,
                "medkg/replaced": replaced,
                "medkg/removed": removed,
                "medkg/stale": stale,
                "medkg/disk_bytes": now.disk_bytes,
                "medkg/device_bytes": now.device_bytes,
                **used,
                "medkg/device": now.device,
                "medkg/preview": previews.points_table(stored),
            },
        )

    return asset


def reranked_answers_asset(pipeline: Pipeline) -> dg.AssetsDefinition:
    """Makes `reranked_answers`: questions asked of the whole collection, whatever batches it came from."""

    @pipeline.asset(
        "reranked_answers",
        "Questions, and the passages that answer them: found by vector, ordered by the reranker.",
        kinds={"rust", "grpc"},
        after=["vector_index"],
        on_device=True,
        in_batches=False,
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: AnswersConfig,
        gpu_services: GpuServicesResource,
        vector_index: Any,
    ) -> dg.Output[list[Answer]]:
        asked = config.questions or pipeline.questions
        if not asked:
            msg = "no questions: give `questions` to medkg_assets, or in the configuration of reranked_answers"
            raise refusal(msg)
        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            index = current_index(vector_index, run.tenant)
            done = retrieval.answer_questions(
                asked,
                index,
                run,
                candidates=pipeline.candidates,
                top_n=pipeline.top_n,
                fusion=pipeline.fusion,
                model=pipeline.reranking_model,
            )
            used = run.metadata()
        return dg.Output(
            done.answers,
            metadata={
                "dagster/row_count": len(done.answers),
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds_since(started),
                **{f"medkg/{part}_seconds": round(seconds, 4) for part, seconds in done.seconds.items()},
                "medkg/embedding_model": index.model,
                "medkg/model": done.reranking_model or "none",
                "medkg/fusion": pipeline.fusion,
                "medkg/passages": sum(len(answer.passages) for answer in done.answers),
                **used,
                "medkg/answers": previews.answers_text(done.answers),
            },
        )

    return asset
