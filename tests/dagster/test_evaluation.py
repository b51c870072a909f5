"""The evaluation over judged queries: formulas against values worked out by hand, and a run over real judgements."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import dagster as dg
import pytest

from medkg.dagster import GpuServicesResource, TableIOManager, medkg_assets, retrieval_evaluation
from medkg.dagster.evaluation import read_judged_queries
from medkg.dagster.ranking_quality import ndcg, recall, reciprocal_rank
from medkg.local import LocalServer

LOG3 = math.log2(3)


@pytest.mark.parametrize(
    ("ranking", "judged", "expected"),
    [
        ("ab", {"a": 1}, 1.0),
        ("ba", {"a": 1}, 1 / LOG3),
        ("xy", {"a": 1}, 0.0),
        ("ba", {"a": 2, "b": 1}, (1 + 2 / LOG3) / (2 + 1 / LOG3)),
        ("axb", {"a": 1, "b": 1}, (1 + 1 / 2) / (1 + 1 / LOG3)),
        ("a", {"a": 0}, 0.0),
        ("", {"a": 1}, 0.0),
    ],
)
def test_ndcg_is_the_discounted_gain_over_the_best_one(
    ranking: Sequence[str], judged: Mapping[str, float], expected: float
) -> None:
    assert ndcg(ranking, judged, 10) == pytest.approx(expected)


def test_only_the_first_k_count() -> None:
    assert ndcg("xa", {"a": 1}, 1) == 0.0
    assert ndcg("ab", {"a": 1, "b": 1}, 1) == 1.0  # the best order has one within the first rank as well
    assert recall("axb", {"a": 1, "b": 1, "c": 1, "d": 0}, 2) == pytest.approx(1 / 3)
    assert recall("axb", {"a": 1, "b": 1, "c": 1, "d": 0}, 3) == pytest.approx(2 / 3)
    assert (reciprocal_rank("xya", {"a": 1}, 10), reciprocal_rank("xya", {"a": 1}, 2)) == (pytest.approx(1 / 3), 0.0)


@pytest.mark.parametrize(
    ("queries", "judgements", "reason"),
    [
        ("no json", "q\td\ts\n", "queries.jsonl, line 1"),
        ('{"_id": "1", "text": "a"}\n{"_id": "2"}\n', "q\td\ts\n", "queries.jsonl, line 2"),
        ("", "q\td\ts\n1\t2\n", "judgements.tsv, line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, queries: str, judgements: str, reason: str) -> None:
    (tmp_path / "queries.jsonl").write_text(queries, encoding="utf-8")
    (tmp_path / "judgements.tsv").write_text(judgements, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_judged_queries(tmp_path / "queries.jsonl", tmp_path / "judgements.tsv")


def test_judged_claims_find_their_articles(server: LocalServer, shared_data: Path, tmp_path: Path) -> None:
    scifact = shared_data / "scifact"
    if not scifact.is_dir():
        pytest.skip("../shared/data/scifact is not there: a fresh clone has no judged queries")
    queries, judgements = scifact / "queries.train.jsonl", scifact / "qrels" / "train.tsv"
    asked = read_judged_queries(queries, judgements)[:8]
    relevant = {document for query in asked for document in query.judged}
    with gzip.open(scifact / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        articles = [json.loads(line) for line in file]
    chosen = [one for one in articles if one["_id"] in relevant] + articles[:25]
    for one in chosen:
        (tmp_path / f"{one['_id']}.md").write_text(f"# {one['title']}\n\n{one['text']}\n", encoding="utf-8")

    assets = medkg_assets(documents=tmp_path, collection="scifact", storage=str(tmp_path / "kept"))
    index = assets[3]
    evaluation = retrieval_evaluation(index, queries=queries, judgements=judgements, candidates=10)
    resources = {
        "gpu_services": GpuServicesResource(address=server.address, tenant="judges"),
        "io_manager": TableIOManager(base_path=str(tmp_path / "tables")),
    }
    result = dg.materialize(
        [*assets[:4], evaluation],
        resources=resources,
        run_config={"ops": {"retrieval_evaluation": {"config": {"most_queries": 8}}}},
    )
    metadata = {
        name: value.value
        for name, value in result.asset_materializations_for_node("retrieval_evaluation")[0].metadata.items()
    }
    assert metadata["medkg/queries"] == 8
    assert metadata["dagster/row_count"] == 16
    assert metadata["medkg/vector_recall@100"] == 1.0
    assert min(metadata["medkg/vector_nDCG@10"], metadata["medkg/reranked_nDCG@10"]) > 0.8
    assert metadata["medkg/reranked_MRR@10"] <= 1.0
    picture = base64.b64decode(metadata["medkg/quality"].partition("base64,")[2].removesuffix(")"))
    assert b"reranked nDCG@10" in picture
    assert ET.fromstring(picture).tag.endswith("svg")  # noqa: S314 -- our own picture
    assert (tmp_path / "tables" / "retrieval_evaluation.parquet").exists()
