"""Everything a run reads, put together: training sets with their first-stage order, and the held-out splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data import (
    Document,
    Query,
    QuerySet,
    Splits,
    corpus_queries,
    load_claims,
    load_pubmedqa,
    load_scifact_corpus,
    split_claims,
)
from evaluate import DEPTH
from first_stage import FirstStage, FloatArray, IntArray, rank
from sampling import Candidates

if TYPE_CHECKING:
    from pathlib import Path

HeldOut = tuple[Sequence[Query], Sequence[Document], IntArray, FloatArray]
"""Claims, corpus, candidate rows and first-stage cosines (both [claims, DEPTH])."""


@dataclass(frozen=True)
class Collection:
    """``training`` by kind of query; ``dev`` chooses checkpoint and fusion, ``test`` is only reported."""

    training: Mapping[str, Candidates]
    dev: HeldOut
    test: HeldOut


def relevant_rows(queries: Sequence[Query]) -> set[int]:
    """Every document row that some query of ``queries`` is judged on."""
    return {row for query in queries for row in query.relevant}


def load_splits(data: Path) -> tuple[list[Document], Splits]:
    """The SciFact corpus and its claims, split; fails when a held-out abstract is relevant to a train claim."""
    corpus = load_scifact_corpus(data)
    splits = split_claims(load_claims(data, corpus))
    parts = [relevant_rows(part) for part in (splits.train, splits.dev, splits.test)]
    if parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]:
        raise AssertionError("splits share a relevant abstract")
    return corpus, splits


def load_collection(data: Path, base_model: Path, cache: Path) -> Collection:
    """Read the data and rank every query with the first stage (minutes on a CPU the first time)."""
    corpus, splits = load_splits(data)
    unseen = relevant_rows(splits.dev) | relevant_rows(splits.test)
    titles, conclusions = corpus_queries(corpus, unseen)
    abstracts, questions, closings = load_pubmedqa(data)
    stage = FirstStage(base_model, cache)

    def training(kind: str, pool: str, documents: list[Document], queries: Sequence[Query]) -> Candidates:
        order, _ = rank(stage, pool, documents, kind, queries, depth=DEPTH)
        return Candidates(QuerySet(kind, pool, tuple(queries)), tuple(documents), order)

    sets = [
        training("claims-train", "scifact", corpus, splits.train),
        training("scifact-title", "scifact", corpus, titles),
        training("scifact-conclusion", "scifact", corpus, conclusions),
        training("pubmedqa-question", "pubmedqa", abstracts, questions),
        training("pubmedqa-conclusion", "pubmedqa", abstracts, closings),
    ]
    return Collection(
        {candidates.queries.kind: candidates for candidates in sets},
        _rank_held_out(stage, corpus, "claims-dev", splits.dev),
        _rank_held_out(stage, corpus, "claims-test", splits.test),
    )


def load_held_out(data: Path, base_model: Path, cache: Path) -> Mapping[str, HeldOut]:
    """Only the ``dev`` and ``test`` splits with their candidates."""
    corpus, splits = load_splits(data)
    stage = FirstStage(base_model, cache)
    return {
        "dev": _rank_held_out(stage, corpus, "claims-dev", splits.dev),
        "test": _rank_held_out(stage, corpus, "claims-test", splits.test),
    }


def _rank_held_out(stage: FirstStage, corpus: list[Document], kind: str, queries: Sequence[Query]) -> HeldOut:
    rows, scores = rank(stage, "scifact", corpus, kind, queries, depth=DEPTH)
    return queries, corpus, rows, scores
