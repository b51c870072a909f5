"""The pipeline as assets: documents → chunks → embeddings → vector_index → reranked_answers.

Each works for one tenant, the run's, and hands its output on with that tenant's name. An asset refuses an output that
was made for another tenant: Dagster stores outputs by asset, so a step launched alone for one tenant would otherwise
index what the last run stored for another.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike, fspath
from typing import Any, Final, Literal

import dagster as dg
from pydantic import Field

from medkg.dagster import ingestion, metadata, previews, retrieval
from medkg.dagster.asset_rules import (
    find_model,
    log_progress,
    refusal,
    report_set_aside,
    require_same_chunks,
    require_tenant,
    seconds_since,
)
from medkg.dagster.embedding_store import EmbeddingStore, Recipe
from medkg.dagster.io_manager import storage_path
from medkg.dagster.outputs import Answer, ChunkSet, DocumentSet, EmbeddingSet, IndexSummary
from medkg.dagster.partitions import TENANT_PLACE, DocumentPartitions
from medkg.dagster.resource import GpuServicesResource
from medkg.dagster.step import StepContext, StepIdentity
from medkg.errors import ConfigError

RESOURCE_KEY: Final = "gpu_services"
"""Key under which a project gives the `GpuServicesResource`."""
EMBEDDED_FOLDER: Final = "embedded"
"""Folder of the vectors that are there already."""
_MOST_CANDIDATES: Final = 1024


class DocumentsConfig(dg.Config):
    """Configuration of the asset `documents` in one run."""

    paths: list[str] = Field(default=[], description="Files or folders to read instead of the project's own.")
    only: list[str] = Field(
        default=[], description="Ids or file names of documents to work on, and no others: those that were set aside."
    )


class AnswersConfig(dg.Config):
    """Configuration of the asset `reranked_answers` in one run."""

    questions: list[str] = Field(default=[], description="Questions to ask instead of the project's own.")


@dataclass(frozen=True)
class _Pipeline:
    """The choices of one call of `medkg_assets`."""

    paths: list[str]
    questions: list[str]
    collection: str
    embedding_model: str | None
    reranking_model: str | None
    strategy: Literal["hybrid", "hierarchical"]
    candidates: int
    top_n: int
    fusion: Literal["none", "standardized_sum"]
    docling_serve: str | None
    group_name: str
    key_prefix: list[str]
    pool: str | None
    partitions: DocumentPartitions | None
    embedding_store: str | None
    freshness: dg.FreshnessPolicy | None

    def asset(
        self, name: str, description: str, *, kinds: set[str], after: Sequence[str] = (), on_device: bool = False
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """The decorator that makes an asset of this pipeline out of a function."""
        return dg.asset(
            name=name,
            description=description,
            kinds=kinds,
            group_name=self.group_name,
            key_prefix=self.key_prefix,
            ins={upstream: dg.AssetIn(key=[*self.key_prefix, upstream]) for upstream in after},
            pool=self.pool if on_device else None,
            partitions_def=None if self.partitions is None else self.partitions.definition,
            freshness_policy=self.freshness,
        )

    def paths_of(self, tenant: str, config: DocumentsConfig) -> list[str]:
        """Where a run's documents are."""
        return [path.replace(TENANT_PLACE, tenant) for path in config.paths or self.paths]

    def wants(self, context: StepContext, config: DocumentsConfig) -> Callable[[str, str], bool]:
        """Whether a step works on a document, by its id and file name."""
        step, only = StepIdentity.of(context), set(config.only)

        def wanted(document_id: str, name: str) -> bool:
            own = self.partitions is None or self.partitions.has(document_id, step)
            return own and (not only or document_id in only or name in only)

        return wanted

    @property
    def may_be_empty(self) -> bool:
        """Whether a step may have no documents."""
        return self.partitions is not None


def medkg_assets(
    *,
    documents: str | PathLike[str] | Sequence[str | PathLike[str]],
    questions: Sequence[str] = (),
    collection: str = "literature",
    embedding_model: str | None = None,
    reranking_model: str | None = None,
    strategy: Literal["hybrid", "hierarchical"] = "hybrid",
    candidates: int = 30,
    top_n: int = 5,
    fusion: Literal["none", "standardized_sum"] = "standardized_sum",
    docling_serve: str | None = None,
    group_name: str = "medkg",
    key_prefix: Sequence[str] = (),
    pool: str | None = "gpu",
    batches: int | None = None,
    tenants: Sequence[str] | None = None,
    embedding_store: str | None = None,
    freshness: timedelta | None = None,
) -> list[dg.AssetsDefinition]:
    """Makes the five assets; they need a `GpuServicesResource` under the key `gpu_services`.

    Args:
        documents: Files or folders: Docling JSON, Markdown, HTML, DOCX, JATS XML, and PDF with `docling_serve`.
            Relative paths are seen from the working directory of the step; `{tenant}` stands for the tenant's name.
        questions: Questions that `reranked_answers` asks; a run can ask others in its configuration.
        collection: Vector collection that holds the chunks, of the run's tenant.
        embedding_model: Name of the embedding model; None is the server's default.
        reranking_model: Name of the reranking model; None is the server's default.
        strategy: How documents are chunked: `hybrid` or `hierarchical`.
        candidates: Passages found by vector for each question, 1 to 1,024: what the reranker takes of one question.
        top_n: Passages kept for each question after reranking.
        fusion: `none` orders by the reranker alone; `standardized_sum` adds its score and the similarity.
        docling_serve: Address of a docling-serve that converts PDF.
        group_name: Group of the assets in Dagster's UI.
        key_prefix: Prefix of their keys.
        pool: Dagster pool of the assets that work on the device; it limits nothing until a limit is set for it.
        batches: Partitions the assets by batch of documents, into so many; a document's batch follows from its name.
        tenants: Partitions them by tenant as well, in the dimension `tenant`; `documents` then says `{tenant}`.
        embedding_store: Folder or address of the vectors that are there already, for all tenants; by default in the
            Dagster instance's storage.
        freshness: How old the assets may become; Dagster tells of those that are older.

    Raises:
        medkg.ConfigError: `candidates` or `batches` is out of range, or all tenants would read the same documents.
    """
    if not 1 <= candidates <= _MOST_CANDIDATES:
        msg = f"candidates: {candidates} is out of range; use 1 to {_MOST_CANDIDATES}, what the reranker takes at once"
        raise ConfigError(msg)
    paths = [documents] if isinstance(documents, (str, PathLike)) else documents
    places = [fspath(path) for path in paths]
    pipeline = _Pipeline(
        paths=places,
        questions=list(questions),
        collection=collection,
        embedding_model=embedding_model,
        reranking_model=reranking_model,
        strategy=strategy,
        candidates=candidates,
        top_n=top_n,
        fusion=fusion,
        docling_serve=docling_serve,
        group_name=group_name,
        key_prefix=list(key_prefix),
        pool=pool,
        partitions=DocumentPartitions.of(batches, tenants, places),
        embedding_store=embedding_store,
        freshness=None if freshness is None else dg.FreshnessPolicy.time_window(fail_window=freshness),
    )
    return [make(pipeline) for make in (_documents, _chunks, _embeddings, _vector_index, _reranked_answers)]


def _documents(pipeline: _Pipeline) -> dg.AssetsDefinition:
    @pipeline.asset("documents", "The documents there are: where, which version, how large.", kinds={"files"})
    def asset(
        context: dg.AssetExecutionContext, config: DocumentsConfig, gpu_services: GpuServicesResource
    ) -> dg.Output[DocumentSet]:
        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            loaded, failed = ingestion.read_documents(
                pipeline.paths_of(run.tenant, config),
                wanted=pipeline.wants(context, config),
                progress=log_progress(context, "files read"),
            )
        report_set_aside(context, failed, left=len(loaded), what="document", may_be_empty=pipeline.may_be_empty)
        formats = Counter(ingestion.format_of(document) for document in loaded)
        return dg.Output(
            DocumentSet(run.tenant, loaded, failed),
            metadata={
                "dagster/row_count": len(loaded),
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds_since(started),
                "medkg/formats": ", ".join(f"{count} {name}" for name, count in sorted(formats.items())),
                "medkg/preview": previews.documents_table(loaded),
                **metadata.set_aside(failed),
            },
        )

    return asset


def _chunks(pipeline: _Pipeline) -> dg.AssetsDefinition:
    @pipeline.asset(
        "chunks",
        "Passages of the documents, none longer than the embedding model takes.",
        kinds={"docling", "grpc"},
        after=["documents"],
    )
    def asset(
        context: dg.AssetExecutionContext, gpu_services: GpuServicesResource, documents: DocumentSet
    ) -> dg.Output[ChunkSet]:
        from medkg.chunking import Chunker  # noqa: PLC0415 - Docling is heavy, and this is its first use

        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, documents.tenant, "documents")
            # First the tokenizer: that call waits for a model that still loads, and a list of models does not.
            tokenizer = run.embedding.tokenizer(pipeline.embedding_model)
            model = find_model(run.embedding.models(), tokenizer.model)
            made, failed = ingestion.chunk_documents(
                documents.documents,
                Chunker(tokenizer.json, model.max_tokens, strategy=pipeline.strategy),
                docling_serve=pipeline.docling_serve,
                progress=log_progress(context, "documents chunked"),
            )
        report_set_aside(context, failed, left=len(made), what="chunk", may_be_empty=pipeline.may_be_empty)
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
                "medkg/token_counts": metadata.histogram(
                    counts, title="Chunks by length", unit="tokens", limit=model.max_tokens
                ),
                "medkg/preview": previews.chunks_table(made),
                **metadata.set_aside(failed),
            },
        )

    return asset


def _embeddings(pipeline: _Pipeline) -> dg.AssetsDefinition:
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
            done = ingestion.embed_chunks(
                chunks.chunks,
                run,
                model=model,
                store=EmbeddingStore(
                    storage_path(pipeline.embedding_store, context.instance) / EMBEDDED_FOLDER,
                    tenant=run.tenant,
                    recipe=recipe,
                ),
                run_id=step.run_id,
                set_failing_aside=step.retry_number >= gpu_services.step_retries,
                progress=log_progress(context, "chunks embedded"),
            )
        report_set_aside(
            context, done.set_aside, left=len(done.chunks), what="embedding", may_be_empty=pipeline.may_be_empty
        )
        vectors, seconds = done.vectors, seconds_since(started)
        return dg.Output(
            ingestion.embedding_set(done, chunks, model=model, prompt=recipe.prompt),
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
                "medkg/trace_id": run.trace_id,
                **metadata.usage(done.usage),
                "medkg/document_similarity": previews.document_similarity(done.chunks, vectors),
                "medkg/preview": previews.embeddings_table(done.chunks, vectors),
                **metadata.set_aside(done.set_aside),
            },
        )

    return asset


def _vector_index(pipeline: _Pipeline) -> dg.AssetsDefinition:
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
                "medkg/device": now.device,
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
                "medkg/trace_id": run.trace_id,
                "medkg/preview": previews.points_table(stored),
            },
        )

    return asset


def _reranked_answers(pipeline: _Pipeline) -> dg.AssetsDefinition:
    @pipeline.asset(
        "reranked_answers",
        "Questions, and the passages that answer them: found by vector, ordered by the reranker.",
        kinds={"rust", "grpc"},
        after=["vector_index"],
        on_device=True,
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: AnswersConfig,
        gpu_services: GpuServicesResource,
        vector_index: IndexSummary,
    ) -> dg.Output[list[Answer]]:
        asked = config.questions or pipeline.questions
        if not asked:
            msg = "no questions: give `questions` to medkg_assets, or in the configuration of reranked_answers"
            raise refusal(msg)
        started = time.perf_counter()
        with gpu_services.for_run(context) as run:
            require_tenant(run.tenant, vector_index.tenant, "vector_index")
            done = retrieval.answer_questions(
                asked,
                vector_index,
                run,
                candidates=pipeline.candidates,
                top_n=pipeline.top_n,
                fusion=pipeline.fusion,
                model=pipeline.reranking_model,
            )
        return dg.Output(
            done.answers,
            metadata={
                "dagster/row_count": len(done.answers),
                "medkg/tenant": run.tenant,
                "medkg/seconds": seconds_since(started),
                **{f"medkg/{part}_seconds": round(seconds, 4) for part, seconds in done.seconds.items()},
                "medkg/embedding_model": vector_index.model,
                "medkg/model": done.reranking_model or "none",
                "medkg/fusion": pipeline.fusion,
                "medkg/passages": sum(len(answer.passages) for answer in done.answers),
                "medkg/trace_id": run.trace_id,
                **metadata.usage(done.usage),
                "medkg/answers": previews.answers_text(done.answers),
            },
        )

    return asset
