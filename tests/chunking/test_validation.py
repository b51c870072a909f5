"""The check of chunks: nothing is wrong with what the chunker makes, and each fault put in is found and named."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medkg.chunking import Chunk, Chunker, ChunkValidationError, check_chunks, load_document, require_valid

if TYPE_CHECKING:
    from collections.abc import Callable

    from medkg.chunking import SourceDocument, Strategy

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
TOKENIZER = Path(os.environ["MEDKG_TEST_MODEL_DIR"], "tokenizer.json")


@pytest.fixture(scope="module")
def source() -> SourceDocument:
    return load_document(SAMPLES / "severe-asthma-biologics.html")


@pytest.fixture(scope="module")
def chunker() -> Chunker:
    return Chunker(TOKENIZER.read_bytes(), 128)


def text_only(chunks: list[Chunk]) -> int:
    return next(chunk.ordinal for chunk in chunks if "|" not in chunk.text and len(chunk.text) > 200)


def with_table(chunks: list[Chunk]) -> int:
    return next(chunk.ordinal for chunk in chunks if chunk.text.count("\n|") > 3)


def changed(chunks: list[Chunk], number: int, text: str) -> list[Chunk]:
    chunk = chunks[number]
    above = chunk.embedding_text.removesuffix(chunk.text)
    return [*chunks[:number], replace(chunk, text=text, embedding_text=above + text), *chunks[number + 1 :]]


def lose(chunks: list[Chunk]) -> list[Chunk]:
    number = text_only(chunks)
    return changed(chunks, number, chunks[number].text[:-40])


def repeat(chunks: list[Chunk]) -> list[Chunk]:
    number = text_only(chunks)
    return [*chunks[: number + 1], replace(chunks[number], chunk_id="again"), *chunks[number + 1 :]]


def swap(chunks: list[Chunk]) -> list[Chunk]:
    return [*chunks[:-2], chunks[-1], chunks[-2]]


def miscount(chunks: list[Chunk]) -> list[Chunk]:
    return [replace(chunks[0], token_count=chunks[0].token_count + 1), *chunks[1:]]


def lengthen(chunks: list[Chunk]) -> list[Chunk]:
    return changed(chunks, 0, chunks[0].text + " and so on" * 100)


def break_row(chunks: list[Chunk]) -> list[Chunk]:
    number = with_table(chunks)
    lines = chunks[number].text.rstrip().split("\n")
    half = len(lines[-1]) // 2
    return changed(chunks, number, "\n".join([*lines[:-1], lines[-1][:half], lines[-1][half:]]))


def drop_header(chunks: list[Chunk]) -> list[Chunk]:
    number = with_table(chunks)
    lines = chunks[number].text.rstrip().split("\n")
    rule = next(at for at, line in enumerate(lines) if line and not set(line) - set("|- "))
    return changed(chunks, number, "\n".join(lines[rule + 1 :]))


def misname(chunks: list[Chunk]) -> list[Chunk]:
    return [*chunks[:-1], replace(chunks[-1], section="dosage")]


def mix(chunks: list[Chunk]) -> list[Chunk]:
    return [*chunks[:-1], replace(chunks[-1], item_refs=(*chunks[0].item_refs, *chunks[-1].item_refs))]


def overlap(chunks: list[Chunk]) -> list[Chunk]:
    return [*chunks[:-1], replace(chunks[-1], overlap=10)]


FAULTS: dict[str, tuple[Callable[[list[Chunk]], list[Chunk]], str, str]] = {
    "a text is cut short": (lose, "coverage", "is not whole"),
    "a chunk is there again": (repeat, "overlap", "that an earlier chunk has"),
    "two chunks change places": (swap, "order", "goes back to"),
    "a count is wrong": (miscount, "limit", "says it has"),
    "a chunk is too long": (lengthen, "limit", "more than the limit of 128"),
    "a row is broken": (break_row, "table", "is not whole in any chunk"),
    "a header is missing": (drop_header, "table", "without its header"),
    "a section has another name": (misname, "section", "says its section is 'dosage'"),
    "two sections are mixed": (mix, "section", "mixes 2 sections"),
    "overlap was not asked for": (overlap, "overlap", "characters of the chunk before"),
}


@pytest.mark.requirement("isolation 1.4")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_the_chunk_named(fault: str, source: SourceDocument, chunker: Chunker) -> None:
    spoil, check, words = FAULTS[fault]
    chunks = spoil(chunker.chunk(source))
    problems = [problem for problem in check_chunks(source, chunks, chunker) if problem.check == check]
    found = next(problem for problem in problems if words in problem.problem)
    assert found.chunk_id in {chunk.chunk_id for chunk in chunks}
    assert str(found).startswith(f"{found.chunk_id}: ")
    assert found.action in str(found)
    with pytest.raises(ChunkValidationError, match="its chunks are not valid") as caught:
        require_valid(source, chunks, chunker)
    assert str(found) in caught.value.problems
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems  # noqa: S301 - our own


@pytest.mark.requirement("isolation 1.2")
@pytest.mark.parametrize("overlap_tokens", [0, 16])
@pytest.mark.parametrize("limit", [64, 256])
@pytest.mark.parametrize("strategy", ["hybrid", "hierarchical", "clinical"])
def test_what_the_chunker_makes_is_valid(strategy: Strategy, limit: int, overlap_tokens: int) -> None:
    chunker = Chunker(TOKENIZER.read_bytes(), limit, strategy=strategy, overlap_tokens=overlap_tokens)
    for path in sorted(SAMPLES.iterdir()):
        document = load_document(path)
        assert check_chunks(document, chunker.chunk(document), chunker) == (), path.name


@pytest.mark.filterwarnings("ignore:Chunks prefix is too long")  # a table header wider than 64 tokens
@pytest.mark.requirement("isolation 1.2")
@pytest.mark.parametrize("limit", [64, 256])
def test_chunks_of_real_papers_are_valid(real_documents: Path, limit: int) -> None:
    chunker = Chunker(TOKENIZER.read_bytes(), limit, strategy="clinical")
    for path in sorted(real_documents.glob("*.json")):
        document = load_document(path)
        assert check_chunks(document, chunker.chunk(document), chunker) == (), path.name
