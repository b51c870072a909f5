"""The pipeline as assets: documents → chunks → embeddings → vector_index → reranked_answers.

Each works for one tenant, the run's, and hands its output on with that tenant's name. An asset refuses an output that
was made for another tenant: Dagster stores outputs by asset, so a step launched alone for one tenant would otherwise
index what the last run stored for another.
"""

from collections.abc import Sequence
from datetime import timedelta
from os import PathLike, fspath
from typing import Final, Literal

import dagster as dg

from medkg.chunking import Strategy
from medkg.dagster.choices import Pipeline
from medkg.dagster.conversion_assets import conversion_assets
from medkg.dagster.document_assets import chunks_asset, documents_asset
from medkg.dagster.index_assets import embeddings_asset, reranked_answers_asset, vector_index_asset
from medkg.dagster.partitions import DocumentPartitions
from medkg.errors import ConfigError

_MOST_CANDIDATES: Final = 1024


def medkg_assets(
    *,
    documents: str | PathLike[str] | Sequence[str | PathLike[str]],
    questions: Sequence[str] = (),
    collection: str = "literature",
    embedding_model: str | None = None,
    reranking_model: str | None = None,
    strategy: Strategy = "hybrid",
    candidates: int = 30,
    top_n: int = 5,
    fusion: Literal["none", "standardized_sum"] = "standardized_sum",
    docling_serve: str | None = None,
    manual: bool = False,
    group_name: str = "medkg",
    key_prefix: Sequence[str] = (),
    pool: str | None = "gpu",
    batches: int | None = None,
    tenants: Sequence[str] | None = None,
    storage: str | None = None,
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
        strategy: How documents are chunked: `hybrid`, `hierarchical`, or `clinical`: by section.
        candidates: Passages found by vector for each question, 1 to 1,024: what the reranker takes of one question.
        top_n: Passages kept for each question after reranking.
        fusion: `none` orders by the reranker alone; `standardized_sum` adds its score and the similarity.
        docling_serve: Address of a docling-serve that converts PDF; `chunks` waits for it, unless `manual`.
        manual: Whether PDF are handed in by assets of their own, `pdf_metadata` → `pdfs` → `conversions`, and
            `documents` is a gate that needs them converted; see `conversion_sensor`.
        group_name: Group of the assets in Dagster's UI.
        key_prefix: Prefix of their keys.
        pool: Dagster pool of the assets that work on the device; it limits nothing until a limit is set for it.
        batches: Partitions the assets by batch of documents, into so many; a document's batch follows from its name.
        tenants: Partitions them by tenant as well, in the dimension `tenant`; `documents` then says `{tenant}`.
        storage: Folder or address of what the assets keep beside their outputs, for all tenants: vectors that are there
            already, converted PDF. By default in the Dagster instance's storage.
        freshness: How old the assets may become; Dagster tells of those that are older.

    Raises:
        medkg.ConfigError: `manual` without `docling_serve`; `candidates` or `batches` is out of range; or all tenants
            would read the same documents.
    """
    if not 1 <= candidates <= _MOST_CANDIDATES:
        msg = f"candidates: {candidates} is out of range; use 1 to {_MOST_CANDIDATES}, what the reranker takes at once"
        raise ConfigError(msg)
    paths = [documents] if isinstance(documents, (str, PathLike)) else documents
    places = [fspath(path) for path in paths]
    pipeline = Pipeline(
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
        storage=storage,
        freshness=None if freshness is None else dg.FreshnessPolicy.time_window(fail_window=freshness),
    )
    if manual and not docling_serve:
        msg = "docling_serve: manual conversion needs the address of one, such as http://docling:5001"
        raise ConfigError(msg, field_violations=[("docling_serve", "is missing")])
    head = conversion_assets(pipeline, docling_serve) if manual and docling_serve else [documents_asset(pipeline)]
    stages = (chunks_asset, embeddings_asset, vector_index_asset, reranked_answers_asset)
    return [*head, *(make(pipeline) for make in stages)]
