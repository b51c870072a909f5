"""`MedkgPipelineComponent`: the pipeline in a `defs.yaml`, for projects that are made of components.

What can be said is what `medkg_definitions` takes; paths are relative to the folder of the file. Found by `dg` through
the entry point group `dagster_dg_cli.registry_modules`.
"""

from datetime import timedelta
from typing import Any, Literal

import dagster as dg
from dagster.components.component_scaffolding import scaffold_component
from pydantic import Field

from medkg.chunking import Strategy
from medkg.dagster.pipeline import JOB_NAME, medkg_definitions


class MedkgPipelineScaffolder(dg.Scaffolder[Any]):
    """Writes a `defs.yaml` with a project's first choices, and its folder of documents and environments."""

    def scaffold(self, request: "dg.ScaffoldRequest[Any]") -> None:
        """Writes the files."""
        for folder in ("documents", "config"):
            (request.target_path / folder).mkdir(parents=True, exist_ok=True)
        (request.target_path / "config" / "dev.toml").write_text(
            '# Keys as in medkg.toml. Without an address a gpu-server on the CPU is started.\ntenant = "dev"\n',
            encoding="utf-8",
        )
        scaffold_component(
            request, {"env": "dev", "config": "config", "documents": ["documents"], "collection": "literature"}
        )


@dg.scaffold_with(MedkgPipelineScaffolder)
class MedkgPipelineComponent(dg.Component, dg.Resolvable, dg.Model):
    """Medical literature to answers: documents, chunks, embeddings, a vector index and reranked answers.

    GPU inference is done by gpu-server. A GPU failure fails the run, and a fault of the network is retried.
    """

    env: Literal["dev", "staging", "prod"] = Field(
        description="Environment: dev starts a gpu-server on the CPU, prod refuses plaintext, CPUs and defaults."
    )
    documents: list[str] = Field(description="Files or folders of documents.")
    config: str | None = Field(default=None, description="Folder of dev.toml, staging.toml and prod.toml.")
    storage: str | None = Field(default=None, description="Folder or address (s3://...) of the assets' tables.")
    job_name: str = Field(default=JOB_NAME, description="Name of the job.")
    questions: list[str] | None = Field(default=None, description="Questions to answer.")
    collection: str | None = Field(default=None, description="Vector collection that holds the chunks.")
    embedding_model: str | None = Field(default=None, description="Embedding model; prod wants it named.")
    reranking_model: str | None = Field(default=None, description="Reranking model; prod wants it named.")
    strategy: Strategy | None = Field(default=None, description="How documents are chunked.")
    candidates: int | None = Field(default=None, description="Passages found by vector for each question.")
    top_n: int | None = Field(default=None, description="Passages kept for each question after reranking.")
    fusion: Literal["none", "standardized_sum"] | None = Field(default=None, description="How scores are put together.")
    docling_serve: str | None = Field(default=None, description="Address of a docling-serve that converts PDF.")
    manual: bool | None = Field(default=None, description="Whether PDF are converted beside the pipeline.")
    batches: int | None = Field(default=None, description="Partitions that documents are spread over.")
    tenants: list[str] | None = Field(default=None, description="Tenants to partition by.")
    fresh_hours: float | None = Field(default=None, description="Hours after which the answers are stale.")
    group_name: str | None = Field(default=None, description="Group of the assets in Dagster's UI.")
    key_prefix: list[str] | None = Field(default=None, description="Prefix of the assets' keys.")
    pool: str | None = Field(default=None, description="Dagster pool of the assets that work on the device.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Makes the definitions.

        Raises:
            medkg.ConfigError: The attributes or the environment cannot be used.
        """
        said = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        said["documents"] = [str(context.path / path) for path in self.documents]
        if self.config is not None:
            said["config"] = context.path / self.config
        if (hours := said.pop("fresh_hours", None)) is not None:
            said["freshness"] = timedelta(hours=hours)
        return medkg_definitions(**said)
