"""Retrieval through medkg finds what the reference pipeline finds: nDCG@10 on SciFact's train queries."""

from __future__ import annotations

import csv
import gzip
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import medkg

CUT = 10


class Judged:
    """SciFact: abstracts, claims, and which abstracts bear on which claim."""

    def __init__(self, folder: Path) -> None:
        with gzip.open(folder / "corpus.jsonl.gz", "rt") as lines:
            records = [json.loads(line) for line in lines]
        self.abstracts = {record["_id"]: f"{record['title']} {record['text']}" for record in records}
        claims = [json.loads(line) for line in (folder / "queries.train.jsonl").read_text().splitlines()]
        self.claims = {claim["_id"]: claim["text"] for claim in claims}
        self.relevant: dict[str, set[str]] = {}
        with (folder / "qrels" / "train.tsv").open() as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                if int(row["score"]) > 0:
                    self.relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])


def ndcg(found: Iterable[str], relevant: set[str]) -> float:
    """Normalised discounted cumulative gain at 10, binary relevance (Järvelin and Kekäläinen 2002)."""
    gain = sum(1 / np.log2(rank + 2) for rank, document in enumerate(found) if document in relevant)
    return float(gain / sum(1 / np.log2(rank + 2) for rank in range(min(CUT, len(relevant)))))


def compare(
    judged: Judged,
    services: medkg.Services,
    reference: Callable[..., dict[str, np.ndarray]],
    model: Path,
    documents: list[str],
    queries: list[str],
) -> tuple[float, float]:
    """medkg's and the reference's mean nDCG@10."""
    texts = [judged.abstracts[document] for document in documents]
    claims = [judged.claims[query] for query in queries]
    name = f"scifact-{len(documents)}"
    info = services.embedding.models()[0]
    services.vector.create_collection(name, info.dimension, metric="cosine")
    services.vector.upsert(name, documents, services.embedding.embed(texts).vectors)
    hits = services.vector.search(name, services.embedding.embed(claims).vectors, k=CUT, with_payload=False)
    services.vector.drop_collection(name)
    found = [[hit.id for hit in row] for row in hits]
    vectors = reference(embedding_model=model, texts=[*texts, *claims], batch_size=16)["vectors"].astype(np.float64)
    scores = vectors[len(texts) :] @ vectors[: len(texts)].T
    wanted = [[documents[at] for at in np.argsort(-row, kind="stable")[:CUT]] for row in scores]
    relevant = [judged.relevant[query] for query in queries]
    return (
        float(np.mean([ndcg(row, right) for row, right in zip(found, relevant, strict=True)])),
        float(np.mean([ndcg(row, right) for row, right in zip(wanted, relevant, strict=True)])),
    )


@pytest.mark.requirement("observability 3.4")
def test_on_a_part_of_scifact(
    shared_data: Path, services: medkg.Services, reference: Callable[..., dict[str, np.ndarray]], minilm_dir: Path
) -> None:
    judged = Judged(shared_data / "scifact")
    queries = sorted(judged.relevant)[:120]
    right = {document for query in queries for document in judged.relevant[query]}
    others = [document for document in sorted(judged.abstracts) if document not in right]
    documents = sorted(right | set(others[:150]))
    ours, theirs = compare(judged, services, reference, minilm_dir, documents, queries)
    print(f"nDCG@10 over {len(documents)} abstracts: medkg {ours:.4f}, reference {theirs:.4f}")
    assert abs(ours - theirs) <= 0.002


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.requirement("observability 3.4")
def test_on_all_of_scifact(
    shared_data: Path, services: medkg.Services, reference: Callable[..., dict[str, np.ndarray]], minilm_dir: Path
) -> None:
    judged = Judged(shared_data / "scifact")
    ours, theirs = compare(judged, services, reference, minilm_dir, sorted(judged.abstracts), sorted(judged.relevant))
    print(f"nDCG@10 over {len(judged.abstracts)} abstracts: medkg {ours:.4f}, reference {theirs:.4f}")
    assert abs(ours - theirs) <= 0.002
