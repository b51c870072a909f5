"""Checks of what the pipeline made, before anything is built on it: blocking asset checks, each with what it saw.

Of `embeddings`: `dimension`, `finite`, `norm`, `count`, `duplicates`. Of `vector_index`: `points`, `recall`. They run
in a step of their own after the asset, read what is stored, and can be run alone. What depends on the asset waits for
them and is not made if one fails.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import dagster as dg
import numpy as np

from medkg.dagster.asset_rules import current_index, require_tenant
from medkg.dagster.outputs import ChunkSet, EmbeddingSet, IndexSummary
from medkg.dagster.resource import GpuServicesResource

_UNIT: Final = 1e-3
"""How far from 1 the norm of a vector of unit length may be: what rounding to bfloat16 on the way costs."""
_LEAST_NORM: Final = 1e-6
_SHOWN: Final = 20
_EMBEDDING_CHECKS: Final = {
    "dimension": "Every vector has as many elements as the server says of the model.",
    "finite": "No element is NaN or infinite.",
    "norm": "Vectors have unit length where the model says so; none is zero.",
    "count": "Every stored chunk has a vector, but for those of documents that were set aside.",
    "duplicates": "No chunk has two vectors.",
}
_INDEX_CHECKS: Final = {
    "points": "The collection has at least the points of this asset, and its dimension.",
    "recall": "Search finds the exact nearest points, which the server computes anew in float64.",
}


def medkg_asset_checks(
    assets: Sequence[dg.AssetsDefinition], *, blocking: bool = True, least_recall: float = 0.99, sample: int = 32
) -> list[dg.AssetChecksDefinition]:
    """The checks of the assets that `medkg_assets` made.

    Args:
        assets: Those assets.
        blocking: Whether what depends on a failed asset is not made.
        least_recall: Share of the exact nearest points that search has to find; below it the check fails.
        sample: Stored points that are searched for, 1 to 1,000.
    """
    by_name = {asset.key.path[-1]: asset for asset in assets}
    return [
        _embedding_checks(by_name["embeddings"], by_name["chunks"], blocking=blocking),
        _index_checks(by_name["vector_index"], blocking=blocking, least_recall=least_recall, sample=sample),
    ]


def check_embeddings(embeddings: EmbeddingSet, chunks: ChunkSet) -> Iterator[dg.AssetCheckResult]:
    """What the checks of `embeddings` say of these."""
    vectors, ids = embeddings.vectors, embeddings.chunk_ids
    finite = np.isfinite(vectors).all(axis=1)
    norms = np.linalg.norm(np.where(np.isfinite(vectors), vectors, 0).astype(np.float64), axis=1)
    off = np.abs(norms - 1) > _UNIT if embeddings.normalized else norms < _LEAST_NORM
    aside = {one.document for one in embeddings.set_aside}
    wanted = {chunk.chunk_id for chunk in chunks.chunks if chunk.document_id not in aside}
    twice = [chunk_id for chunk_id, count in Counter(ids).items() if count > 1]
    yield _result(
        "dimension",
        () if vectors.shape[1] == embeddings.dimension else ids,
        dimension=vectors.shape[1],
        expected=embeddings.dimension,
    )
    yield _result("finite", _rows(ids, ~finite), vectors=len(ids))
    yield _result(
        "norm",
        _rows(ids, off & finite),
        least=float(norms.min(initial=1.0)),
        largest=float(norms.max(initial=0.0)),
        unit_length=embeddings.normalized,
    )
    yield _result("count", sorted(wanted.symmetric_difference(ids)), vectors=len(ids), chunks=len(wanted))
    yield _result("duplicates", twice, distinct_texts=len(set(embeddings.content_sha256)))


def _embedding_checks(
    asset: dg.AssetsDefinition, chunks: dg.AssetsDefinition, *, blocking: bool
) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=_name(asset),
        specs=_specs(asset, _EMBEDDING_CHECKS, blocking=blocking, beside=[chunks.key]),
        ins={"embeddings": dg.AssetIn(asset.key), "chunks": dg.AssetIn(chunks.key)},
    )
    def check(
        context: dg.AssetCheckExecutionContext,
        gpu_services: GpuServicesResource,
        embeddings: EmbeddingSet,
        chunks: ChunkSet,
    ) -> Iterable[dg.AssetCheckResult]:
        with gpu_services.for_run(context) as run:  # dials nobody: it tells whose run this is
            require_tenant(run.tenant, embeddings.tenant, "embeddings")
        yield from check_embeddings(embeddings, chunks)

    return check


def _index_checks(
    asset: dg.AssetsDefinition, *, blocking: bool, least_recall: float, sample: int
) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=_name(asset),
        specs=_specs(asset, _INDEX_CHECKS, blocking=blocking),
        ins={"vector_index": dg.AssetIn(asset.key)},
    )
    def check(
        context: dg.AssetCheckExecutionContext, gpu_services: GpuServicesResource, vector_index: Any
    ) -> Iterable[dg.AssetCheckResult]:
        with gpu_services.for_run(context) as run:
            index: IndexSummary = current_index(vector_index, run.tenant)
            now = run.vector.statistics(index.collection)
            yield dg.AssetCheckResult(
                check_name="points",
                passed=now.points >= index.points and now.dimension == index.dimension,
                metadata={
                    "medkg/points": now.points,
                    "medkg/expected": index.points,
                    "medkg/dimension": now.dimension,
                    "medkg/stale": index.stale,
                },
            )
            if not now.points:
                yield dg.AssetCheckResult(check_name="recall", passed=True, metadata={"medkg/queries": 0})
                return
            report = run.vector.check_recall(index.collection, sample=sample)
            yield dg.AssetCheckResult(
                check_name="recall",
                passed=report.recall >= least_recall,
                metadata={
                    "medkg/recall": report.recall,
                    "medkg/least_recall": least_recall,
                    "medkg/queries": report.queries,
                    "medkg/mismatches": report.mismatches,
                    "medkg/mismatched": dg.MetadataValue.json(report.mismatched_ids),
                },
            )

    return check


def _specs(
    asset: dg.AssetsDefinition, checks: dict[str, str], *, blocking: bool, beside: Sequence[dg.AssetKey] = ()
) -> list[dg.AssetCheckSpec]:
    """Specifications of checks that read the asset, and others beside it; of its partition, where it has some."""
    with warnings.catch_warnings():
        # Dagster calls partitions of checks a preview. Without them a check would read all partitions in each run.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(
                name,
                asset=asset.key,
                description=text,
                blocking=blocking,
                additional_deps=beside,
                partitions_def=asset.partitions_def,
            )
            for name, text in checks.items()
        ]


def _name(asset: dg.AssetsDefinition) -> str:
    return "_".join([*asset.key.path, "checks"])


def _rows(ids: Sequence[str], wrong: Any) -> list[str]:
    """The ids of the rows that a mask of shape (rows,) says are wrong."""
    return [chunk_id for chunk_id, is_wrong in zip(ids, wrong, strict=True) if is_wrong]


def _result(name: str, wrong: Sequence[str], **seen: float) -> dg.AssetCheckResult:
    """A check that passed if no chunk is wrong; the first of those that are, by their ids."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=not wrong,
        metadata={
            **{f"medkg/{key}": value for key, value in seen.items()},
            "medkg/wrong": len(wrong),
            **({"medkg/wrong_chunks": dg.MetadataValue.json(list(wrong[:_SHOWN]))} if wrong else {}),
        },
    )
