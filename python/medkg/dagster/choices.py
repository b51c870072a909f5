"""What a project chooses of the pipeline, and what a run may choose otherwise; each asset is made from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import dagster as dg
from pydantic import Field

from medkg.chunking import Strategy
from medkg.dagster.partitions import TENANT_PLACE, DocumentPartitions
from medkg.dagster.step import StepContext, StepIdentity

RESOURCE_KEY: Final = "gpu_services"
"""Key under which a project gives the `GpuServicesResource`."""
EMBEDDED_FOLDER: Final = "embedded"
"""Folder of the vectors that are there already."""


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
class Pipeline:
    """The choices of one call of `medkg_assets`, and what follows from them for each asset."""

    paths: list[str]
    questions: list[str]
    collection: str
    embedding_model: str | None
    reranking_model: str | None
    strategy: Strategy
    candidates: int
    top_n: int
    fusion: Literal["none", "standardized_sum"]
    docling_serve: str | None
    group_name: str
    key_prefix: list[str]
    pool: str | None
    partitions: DocumentPartitions | None
    storage: str | None
    freshness: dg.FreshnessPolicy | None

    def asset(
        self,
        name: str,
        description: str,
        *,
        kinds: set[str],
        after: Sequence[str] = (),
        on_device: bool = False,
        in_batches: bool = True,
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """The decorator that makes an asset of this pipeline out of a function."""
        return dg.asset(
            name=name,
            description=description,
            kinds=kinds,
            group_name=self.group_name,
            key_prefix=self.key_prefix,
            ins={upstream: self.input(upstream, all_batches=not in_batches) for upstream in after},
            pool=self.pool if on_device else None,
            partitions_def=self.partitions.definition if self.partitions is not None and in_batches else None,
            freshness_policy=self.freshness,
        )

    def key(self, name: str) -> dg.AssetKey:
        """Key of the asset of that name."""
        return dg.AssetKey([*self.key_prefix, name])

    def input(self, name: str, *, all_batches: bool = False) -> dg.AssetIn:
        """The asset of that name as an input; of all batches, those that are not there yet are left out."""
        return dg.AssetIn(key=self.key(name), metadata={"allow_missing_partitions": True} if all_batches else None)

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
