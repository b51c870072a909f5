"""`retrieval_evaluation`: how well the collection answers questions whose right documents are known.

Judged queries are files in BEIR's form: queries as JSON lines with `_id` and `text`, judgements as tab-separated
`query-id`, `corpus-id`, `score` under a heading. A judged document is known by its file's name without the extension.
Documents are ranked by their best chunk, once by vector alone, and once as `reranked_answers` orders them.
"""

import csv
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

import dagster as dg
import numpy as np
import pyarrow as pa
from pydantic import Field

from medkg.dagster import metadata, pictures, retrieval
from medkg.dagster.asset_rules import current_index, log_progress, refusal, seconds_since
from medkg.dagster.outputs import IndexSummary
from medkg.dagster.ranking_quality import ndcg, recall, reciprocal_rank
from medkg.dagster.resource import GpuServicesResource, RunServices

_GROUP: Final = 64
"""Queries asked at once."""
_NDCG_AT, _RECALL_AT, _MRR_AT = 10, 100, 10
_WORST: Final = 8


class EvaluationConfig(dg.Config):
    """Configuration of `retrieval_evaluation` in one run."""

    most_queries: int = Field(default=0, ge=0, description="Ask only the first so many queries; 0 asks all.")


@dataclass(frozen=True)
class JudgedQuery:
    """A question, and the documents that answer it."""

    query_id: str
    """As in the file."""
    text: str
    """The question."""
    judged: Mapping[str, float]
    """Gain of each judged document, by the name of its file without extension."""


def read_judged_queries(queries: str | PathLike[str], judgements: str | PathLike[str]) -> list[JudgedQuery]:
    """The queries that have a relevant document, in the order of their file.

    Args:
        queries: JSON lines.
        judgements: Tab-separated, with a heading.

    Raises:
        ValueError: A line is not as it should be; the message names file and line.
    """
    judged: dict[str, dict[str, float]] = {}
    with Path(judgements).open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t"), start=1):
            if number == 1:
                continue
            try:
                query, document, score = row[0], row[1], float(row[2])
            except (IndexError, ValueError):
                msg = f"{judgements}, line {number}: {row!r} is not query-id, corpus-id, score, separated by tabs"
                raise ValueError(msg) from None
            judged.setdefault(query, {})[document] = score
    found = []
    with Path(queries).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                one = json.loads(line)
                query, text = str(one["_id"]), str(one["text"])
            except (ValueError, KeyError, TypeError):
                msg = f"{queries}, line {number}: is no JSON object with `_id` and `text`"
                raise ValueError(msg) from None
            if any(score > 0 for score in judged.get(query, {}).values()):
                found.append(JudgedQuery(query, text, judged[query]))
    return found


def retrieval_evaluation(
    index: dg.AssetsDefinition,
    *,
    queries: str | PathLike[str],
    judgements: str | PathLike[str],
    candidates: int = 100,
    rerank: bool = True,
    reranking_model: str | None = None,
    fusion: Literal["none", "standardized_sum"] = "standardized_sum",
    pool: str | None = "gpu",
) -> dg.AssetsDefinition:
    """Makes the asset `retrieval_evaluation` beside a `vector_index`; its output is a table with a row per query.

    Args:
        index: The asset `vector_index` of `medkg_assets`.
        queries: File of the queries.
        judgements: File of the judgements.
        candidates: Chunks found by vector for each query, 1 to 1,024.
        rerank: Whether the reranker's order is measured too.
        reranking_model: Name of the reranking model; None is the server's default.
        fusion: As in `medkg_assets`.
        pool: Dagster pool.
    """

    @dg.asset(
        name="retrieval_evaluation",
        key_prefix=index.key.path[:-1],
        group_name=index.group_names_by_key[index.key],
        description=f"nDCG@{_NDCG_AT}, recall@{_RECALL_AT} and MRR@{_MRR_AT} over judged queries.",
        kinds={"rust", "grpc"},
        ins={"vector_index": dg.AssetIn(index.key, metadata={"allow_missing_partitions": True})},
        pool=pool,
    )
    def asset(
        context: dg.AssetExecutionContext,
        config: EvaluationConfig,
        gpu_services: GpuServicesResource,
        vector_index: Any,
    ) -> dg.Output[pa.Table]:
        started = time.perf_counter()
        asked = read_judged_queries(queries, judgements)[: config.most_queries or None]
        if not asked:
            msg = f"{queries} has no query with a relevant document in {judgements}"
            raise refusal(msg)
        told = log_progress(context, "queries asked")
        rows: list[dict[str, Any]] = []
        with gpu_services.for_run(context) as run:
            found = current_index(vector_index, run.tenant)
            for first in range(0, len(asked), _GROUP):
                group = asked[first : first + _GROUP]
                rankings = _rankings(
                    [query.text for query in group],
                    found,
                    run,
                    candidates=candidates,
                    rerank=rerank,
                    model=reranking_model,
                    fusion=fusion,
                )
                for system, ranked in rankings.items():
                    rows += [_row(query, system, ranking) for query, ranking in zip(group, ranked, strict=True)]
                told(min(first + _GROUP, len(asked)), len(asked))
            used = run.metadata()
        means = _means(rows)
        best = "reranked" if rerank else "vector"
        return dg.Output(
            pa.Table.from_pylist(rows),
            metadata={
                "dagster/row_count": len(rows),
                "medkg/tenant": found.tenant,
                "medkg/seconds": seconds_since(started),
                "medkg/queries": len(asked),
                "medkg/model": found.model,
                "medkg/model_digest": found.model_digest,
                **used,
                **{f"medkg/{name.replace(' ', '_')}": value for name, value in means.items()},
                "medkg/quality": pictures.bars(means, title=f"Retrieval over {len(asked)} judged queries", top=1.0),
                "medkg/worst": metadata.table(
                    sorted((row for row in rows if row["system"] == best), key=lambda row: row["ndcg"])[:_WORST]
                ),
            },
        )

    return asset


def _rankings(
    texts: Sequence[str], index: IndexSummary, run: RunServices, *, candidates: int, rerank: bool, **how: Any
) -> dict[str, list[list[str]]]:
    """Documents for each query, best first, by each of the two orders."""
    if not rerank:
        found = retrieval.search(texts, index, run, candidates=candidates)
        return {"vector": [_documents(hit.payload["source"] for hit in hits if hit.payload) for hits in found.hits]}
    answers = retrieval.answer_questions(texts, index, run, candidates=candidates, top_n=candidates, **how).answers
    return {
        "vector": [
            _documents(one.source for one in sorted(answer.passages, key=lambda passage: passage.retrieved_rank))
            for answer in answers
        ],
        "reranked": [_documents(one.source for one in answer.passages) for answer in answers],
    }


def _documents(sources: Iterable[str]) -> list[str]:
    """Documents in the order of their best chunk, each once."""
    return list(dict.fromkeys(Path(source).stem for source in sources))


def _row(query: JudgedQuery, system: str, ranking: Sequence[str]) -> dict[str, Any]:
    return {
        "query_id": query.query_id,
        "query": query.text,
        "system": system,
        "ndcg": ndcg(ranking, query.judged, _NDCG_AT),
        "recall": recall(ranking, query.judged, _RECALL_AT),
        "reciprocal_rank": reciprocal_rank(ranking, query.judged, _MRR_AT),
    }


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = {"ndcg": f"nDCG@{_NDCG_AT}", "recall": f"recall@{_RECALL_AT}", "reciprocal_rank": f"MRR@{_MRR_AT}"}
    systems = dict.fromkeys(row["system"] for row in rows)
    return {
        f"{system} {name}": round(float(np.mean([row[key] for row in rows if row["system"] == system])), 4)
        for key, name in names.items()
        for system in systems
    }
