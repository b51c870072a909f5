"""One resource for each client, over a `MedkgConnection` that they share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

import medkg
from medkg.dagster.connection import MedkgConnection
from medkg.dagster.resource import run_services
from medkg.dagster.step import StepContext


class _ClientResource(dg.ConfigurableResource[Any]):
    """A resource that gives one client of a connection."""

    connection: dg.ResourceDependency[MedkgConnection]


class EmbeddingResource(_ClientResource):
    """Texts to vectors.

    ```python
    @dg.asset
    def vectors(context: dg.AssetExecutionContext, embedding: EmbeddingResource):
        with embedding.for_run(context) as client:
            return client.embed(["acute kidney injury"]).vectors
    ```
    """

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> Iterator[medkg.EmbeddingClient]:
        """The client, bound to the step as `medkg.dagster.resource.run_services` says."""
        with run_services(self.connection, context, tenant) as run:
            yield run.embedding


class RerankingResource(_ClientResource):
    """Orders passages by how well they answer a query."""

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> Iterator[medkg.RerankingClient]:
        """The client, bound to the step as `medkg.dagster.resource.run_services` says."""
        with run_services(self.connection, context, tenant) as run:
            yield run.reranking


class VectorResource(_ClientResource):
    """Collections of vectors."""

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> Iterator[medkg.VectorClient]:
        """The client, bound to the step as `medkg.dagster.resource.run_services` says."""
        with run_services(self.connection, context, tenant) as run:
            yield run.vector


class GpuResource(_ClientResource):
    """State of the device, leases of its memory."""

    @contextmanager
    def for_run(self, context: StepContext, *, tenant: str | None = None) -> Iterator[medkg.GpuClient]:
        """The client, bound to the step as `medkg.dagster.resource.run_services` says."""
        with run_services(self.connection, context, tenant) as run:
            yield run.gpu
