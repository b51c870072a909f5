"""Every chunk of every sample: fits, keeps the text, and knows where it comes from."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from docling_core.transforms.chunker import DocChunk, HierarchicalChunker
from docling_core.types.doc import SectionHeaderItem, TableItem, TitleItem
from tokenizers import Tokenizer

from medkg.chunking import Chunk, Chunker, chunk_documents, load_document
from medkg.chunking.coverage import body_texts, uncovered_items
from medkg.chunking.hybrid import PlainTextProvider

if TYPE_CHECKING:
    from medkg.chunking import ChunkingReport

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
MODEL_LIMIT = 256
SAMPLE_NAMES = sorted(path.name for path in SAMPLES.iterdir())


def chunks_of(report: ChunkingReport, name: str) -> list[Chunk]:
    return [chunk for chunk in report.chunks if chunk.source == name]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.requirement("isolation 1.2")
@pytest.mark.requirement("isolation 1.3")
def test_no_chunk_is_longer_than_the_model_takes(sample_report: ChunkingReport, minilm_tokenizer_json: bytes) -> None:
    tokenizer = Tokenizer.from_str(minilm_tokenizer_json.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert {chunk.source for chunk in sample_report.chunks} == set(SAMPLE_NAMES)
    for chunk in sample_report.chunks:
        assert chunk.token_count == len(tokenizer.encode(chunk.embedding_text).ids)
        assert 2 < chunk.token_count <= MODEL_LIMIT


@pytest.mark.parametrize("limit", [32, 48, 64, 130, 512])
@pytest.mark.parametrize("strategy", ["hybrid", "hierarchical"])
def test_any_limit_holds_and_loses_nothing(
    limit: int, strategy: Literal["hybrid", "hierarchical"], minilm_tokenizer_json: bytes
) -> None:
    report = chunk_documents([SAMPLES], Chunker(minilm_tokenizer_json, limit, strategy=strategy))
    assert not report.failures
    assert max(chunk.token_count for chunk in report.chunks) <= limit
    assert {document.source: document.uncovered_items for document in report.documents} == dict.fromkeys(
        SAMPLE_NAMES, ()
    )


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_every_text_of_the_document_is_in_its_chunks(sample_report: ChunkingReport, name: str) -> None:
    """Checked here without the package's own check, which must not judge itself."""
    chunks = chunks_of(sample_report, name)
    text = squeezed("".join(chunk.text for chunk in chunks))
    headings = {squeezed(heading) for chunk in chunks for heading in chunk.headings}
    for ref, wanted, _ in body_texts(load_document(SAMPLES / name).document):
        assert squeezed(wanted) in text or squeezed(wanted) in headings, ref


def test_the_check_for_lost_text_sees_a_lost_chunk(chunker: Chunker) -> None:
    source = load_document(SAMPLES / "sepsis-first-hours.json")
    chunks = chunker.chunk(source)
    assert uncovered_items(source.document, chunks) == ()
    for lost in range(len(chunks)):
        missing = uncovered_items(source.document, chunks[:lost] + chunks[lost + 1 :])
        assert missing
        assert set(missing) & set(chunks[lost].item_refs)


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_chunks_follow_the_document(sample_report: ChunkingReport, name: str) -> None:
    document = load_document(SAMPLES / name).document
    order = {item.self_ref: number for number, (item, _) in enumerate(document.iterate_items())}
    chunks = chunks_of(sample_report, name)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    # The last item is never a caption; those may stand anywhere, in JATS at the end of the document.
    ends = [order[chunk.item_refs[-1]] for chunk in chunks]
    assert ends == sorted(ends)


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_chunks_know_their_headings_and_items(sample_report: ChunkingReport, name: str) -> None:
    source = load_document(SAMPLES / name)
    headings_above: dict[str, tuple[str, ...]] = {}
    path: dict[int, str] = {}
    for item, _ in source.document.iterate_items():
        if isinstance(item, TitleItem | SectionHeaderItem):
            level = item.level if isinstance(item, SectionHeaderItem) else 0
            path = {key: value for key, value in path.items() if key < level}
            path[level] = item.text
        headings_above[item.self_ref] = tuple(path.values())
    chunks = chunks_of(sample_report, name)
    for chunk in chunks:
        assert chunk.document_id == source.document_id
        assert chunk.document_title == source.title
        assert chunk.headings == headings_above[chunk.item_refs[-1]]
        assert chunk.embedding_text == "\n".join([*chunk.headings, chunk.text])
    assert any(len(chunk.headings) > 1 for chunk in chunks)


@pytest.mark.parametrize("name", ["harbour-ckd-trial.json", "sepsis-first-hours.json"])
def test_pages_and_boxes_come_from_the_items(sample_report: ChunkingReport, name: str) -> None:
    document = load_document(SAMPLES / name).document
    places = {
        item.self_ref: [(place.page_no, place.bbox.l, place.bbox.t, place.bbox.r, place.bbox.b) for place in item.prov]
        for item in (*document.texts, *document.tables)
    }
    chunks = chunks_of(sample_report, name)
    for chunk in chunks:
        boxes = [(box.page, box.left, box.top, box.right, box.bottom) for box in chunk.bounding_boxes]
        assert boxes == [place for ref in chunk.item_refs for place in places[ref]]
        assert {box.origin for box in chunk.bounding_boxes} == {"BOTTOMLEFT"}
        assert chunk.pages == tuple(sorted({box.page for box in chunk.bounding_boxes}))
        assert chunk.page == chunk.pages[0]
    assert {page for chunk in chunks for page in chunk.pages} == {1, 2, 3}


def test_formats_without_pages_have_none(sample_report: ChunkingReport) -> None:
    for chunk in chunks_of(sample_report, "migraine-prophylaxis.html"):
        assert chunk.page is None
        assert chunk.pages == ()
        assert chunk.bounding_boxes == ()


@pytest.mark.requirement("isolation 1.2")
def test_a_table_keeps_its_header_and_every_cell_when_it_is_cut(minilm_tokenizer_json: bytes) -> None:
    source = load_document(SAMPLES / "severe-asthma-biologics.html")
    chunks = Chunker(minilm_tokenizer_json, 128).chunk(source)
    (table,) = (item for item, _ in source.document.iterate_items() if isinstance(item, TableItem))
    parts = [chunk for chunk in chunks if table.self_ref in chunk.item_refs and "|" in chunk.text]
    assert len(parts) > 1
    rows = [[cell.text for cell in row] for row in table.data.grid]
    header = "| " + " | ".join(rows[0]) + " |"
    assert all(header in part.text for part in parts)
    for row in rows[1:]:
        line = "| " + " | ".join(row) + " |"
        assert sum(line in part.text for part in parts) == 1, line
    assert "Biologics licensed for severe asthma" in parts[0].text
    (caption,) = (reference.cref for reference in table.captions)
    assert all(part.item_refs[:2] == (caption, table.self_ref) for part in parts)


def test_hierarchical_equals_docling_where_nothing_is_too_long(minilm_tokenizer_json: bytes) -> None:
    docling = HierarchicalChunker(serializer_provider=PlainTextProvider(), always_emit_headings=True)
    chunker = Chunker(minilm_tokenizer_json, 512, strategy="hierarchical")
    for name in SAMPLE_NAMES:
        source = load_document(SAMPLES / name)
        expected = [
            (chunk.text, tuple(chunk.meta.headings or ()))
            for chunk in docling.chunk(source.document)
            if isinstance(chunk, DocChunk)
        ]
        assert [(chunk.text, chunk.headings) for chunk in chunker.chunk(source)] == expected


def test_merging_neighbours_gives_fewer_chunks_of_the_same_text(minilm_tokenizer_json: bytes) -> None:
    source = load_document(SAMPLES / "community-acquired-pneumonia.md")
    merged = Chunker(minilm_tokenizer_json, MODEL_LIMIT).chunk(source)
    apart = Chunker(minilm_tokenizer_json, MODEL_LIMIT, merge_peers=False).chunk(source)
    assert len(merged) < len(apart)
    assert squeezed("".join(chunk.text for chunk in merged)) == squeezed("".join(chunk.text for chunk in apart))


def test_chunking_twice_gives_equal_chunks_with_unique_ids(
    chunker: Chunker, sample_report: ChunkingReport, minilm_tokenizer_json: bytes
) -> None:
    assert chunk_documents([SAMPLES], chunker).chunks == sample_report.chunks
    ids = [chunk.chunk_id for chunk in sample_report.chunks]
    assert len(set(ids)) == len(ids)
    first = sample_report.chunks[0]
    other = Chunker(minilm_tokenizer_json, 32).chunk(load_document(SAMPLES / first.source))
    assert other[1].chunk_id not in ids


def test_chunks_survive_json_and_pickle(sample_report: ChunkingReport) -> None:
    for chunk in sample_report.chunks:
        assert Chunk.from_dict(json.loads(json.dumps(chunk.to_dict()))) == chunk
        assert pickle.loads(pickle.dumps(chunk)) == chunk  # noqa: S301


def test_a_dict_that_is_no_chunk_is_refused(sample_report: ChunkingReport) -> None:
    data = sample_report.chunks[0].to_dict()
    with pytest.raises(TypeError, match="colour"):
        Chunk.from_dict({**data, "colour": "red"})
    del data["text"]
    with pytest.raises(TypeError, match="text"):
        Chunk.from_dict(data)


def test_documents_are_summed_up(sample_report: ChunkingReport) -> None:
    for document in sample_report.documents:
        chunks = chunks_of(sample_report, document.source)
        assert document.chunk_count == len(chunks) > 0
        assert document.token_count == sum(chunk.token_count for chunk in chunks)
        assert document.uncovered_items == ()
        assert json.loads(json.dumps(document.to_dict()))["title"] == document.title
