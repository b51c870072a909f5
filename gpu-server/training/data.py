"""Queries, passages and splits the re-ranker is trained and measured on.

Sources, all read from a data folder that is never committed:

* SciFact (``scifact/corpus.jsonl.gz``, ``queries.train.jsonl``, ``qrels/train.tsv``): claims and the abstracts
  judged relevant to them;
* PubMedQA (``pubmedqa/ori_pqal.json``): questions, conclusions and the abstracts they close.

Nothing here touches torch.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SPLIT_SEED = 20240607
"""Decides which claims are held out. Changing it makes every published figure incomparable."""

TEST_CLAIMS = 140
DEV_CLAIMS = 70

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True)
class Document:
    """One abstract. ``title`` is empty for PubMedQA, whose question is the title."""

    id: str
    title: str
    body: str

    @property
    def text(self) -> str:
        """Title and abstract as one passage: the form used at evaluation and when serving."""
        return f"{self.title} {self.body}".strip()

    def without_conclusion(self) -> str:
        """The passage without its last sentence; the whole passage when there is only one sentence."""
        sentences = _SENTENCE_END.split(self.body)
        body = " ".join(sentences[:-1]) if len(sentences) > 1 else self.body
        return f"{self.title} {body}".strip()

    def conclusion(self) -> str | None:
        """The last sentence, when the abstract is long enough for it to stand as a claim of its own."""
        sentences = _SENTENCE_END.split(self.body)
        if len(sentences) < 4:
            return None
        words = len(sentences[-1].split())
        return sentences[-1] if 8 <= words <= 50 else None


@dataclass(frozen=True)
class Query:
    """A query, its relevant documents (row numbers of its pool) and the form its passages take.

    ``form`` names how a pool document is written out for this query, for positives and negatives alike, so that
    the form itself never gives the answer away: ``full``, ``body`` or ``no-conclusion``.
    """

    id: str
    text: str
    relevant: tuple[int, ...]
    form: str


@dataclass(frozen=True)
class QuerySet:
    """Queries of one kind over one pool of documents."""

    kind: str
    pool: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Splits:
    """Claims by use. No abstract is relevant to claims of two different splits."""

    train: tuple[Query, ...]
    dev: tuple[Query, ...]
    test: tuple[Query, ...]


def passage(document: Document, form: str) -> str:
    """Write ``document`` out in ``form`` (see :class:`Query`)."""
    if form == "full":
        return document.text
    if form == "body":
        return document.body
    if form == "no-conclusion":
        return document.without_conclusion()
    raise ValueError(f"unknown passage form {form!r}")


def load_scifact_corpus(data: Path) -> list[Document]:
    """All SciFact abstracts, in file order."""
    with gzip.open(data / "scifact" / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Document(str(row["_id"]), row["title"].strip(), row["text"].strip()) for row in rows]


def load_claims(data: Path, corpus: list[Document]) -> list[Query]:
    """SciFact train claims that have at least one relevant abstract, in file order."""
    row_of = {document.id: row for row, document in enumerate(corpus)}
    relevant: dict[str, list[int]] = {}
    judgements = (data / "scifact" / "qrels" / "train.tsv").read_text(encoding="utf-8").splitlines()
    for line in judgements[1:]:
        claim, document, score = line.split("\t")
        if int(score) > 0:
            relevant.setdefault(claim, []).append(row_of[document])
    claims: list[Query] = []
    for line in (data / "scifact" / "queries.train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["_id"] in relevant:
            claims.append(Query(row["_id"], row["text"].strip(), tuple(sorted(relevant[row["_id"]])), "full"))
    return claims


def split_claims(claims: Iterable[Query], seed: int = SPLIT_SEED) -> Splits:
    """Split claims by groups that share a relevant abstract: two thirds of all claims have such a sibling.

    A random split by claim would put "X raises Y" into train and "X lowers Y", with the same abstract, into test.
    """
    groups: list[list[Query]] = []
    group_of_document: dict[int, int] = {}
    for claim in claims:
        met = sorted({group_of_document[row] for row in claim.relevant if row in group_of_document})
        home = met[0] if met else len(groups)
        if not met:
            groups.append([])
        groups[home].append(claim)
        for other in met[1:]:
            groups[home].extend(groups[other])
            groups[other] = []
        for member in groups[home]:
            for row in member.relevant:
                group_of_document[row] = home
    ordered = [group for group in groups if group]
    random.Random(seed).shuffle(ordered)
    test: list[Query] = []
    dev: list[Query] = []
    train: list[Query] = []
    for group in ordered:
        part = test if len(test) < TEST_CLAIMS else dev if len(dev) < DEV_CLAIMS else train
        part.extend(group)
    return Splits(tuple(train), tuple(dev), tuple(test))


def load_pubmedqa(data: Path) -> tuple[list[Document], list[Query], list[Query]]:
    """PubMedQA abstracts without their conclusion, the questions, and the conclusions as claims."""
    rows = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    documents: list[Document] = []
    questions: list[Query] = []
    conclusions: list[Query] = []
    for number, (pmid, row) in enumerate(rows.items()):
        documents.append(Document(pmid, "", " ".join(row["CONTEXTS"])))
        questions.append(Query(f"question-{pmid}", row["QUESTION"], (number,), "body"))
        conclusions.append(Query(f"conclusion-{pmid}", row["LONG_ANSWER"], (number,), "body"))
    return documents, questions, conclusions


def corpus_queries(corpus: list[Document], held_out: set[int]) -> tuple[list[Query], list[Query]]:
    """Title -> abstract and conclusion -> rest of the abstract, from abstracts no held-out claim is judged on."""
    titles: list[Query] = []
    conclusions: list[Query] = []
    for row, document in enumerate(corpus):
        if row in held_out:
            continue
        if document.title and document.body:
            titles.append(Query(f"title-{document.id}", document.title, (row,), "body"))
        last = document.conclusion()
        if last is not None:
            conclusions.append(Query(f"conclusion-{document.id}", last, (row,), "no-conclusion"))
    return titles, conclusions
