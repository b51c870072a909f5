"""The stages that meet the server, with texts it refuses and documents that shrink: what belongs together stays so."""

from __future__ import annotations

import socket
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from upath import UPath

import medkg
from medkg.chunking import Chunk, Chunker, ChunkingQuality, DoclingServeUnavailableError, load_document
from medkg.dagster import RunServices, chunk_embedding, ingestion, retrieval
from medkg.dagster.embedding_store import EmbeddingStore, Recipe
from medkg.failure_class import FailureClass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from medkg.local import LocalServer


def chunk(document: str, ordinal: int, text: str) -> Chunk:
    return Chunk(
        chunk_id=f"{document}:{ordinal}",
        document_id=document,
        document_title=document.title(),
        source=f"{document}.md",
        ordinal=ordinal,
        text=text,
        embedding_text=text,
        headings=(),
        page=None,
        pages=(),
        bounding_boxes=(),
        item_refs=(),
        token_count=4,
    )


def embed(chunks: list[Chunk], run: RunServices, folder: Path, **other: Any) -> chunk_embedding.Embedded:
    """Embeds by the server's model, of which a test may say something else."""
    (model,) = run.embedding.models()
    store = EmbeddingStore(UPath(folder), tenant=run.tenant, recipe=Recipe(model.digest, ""))
    model = replace(model, **other)
    return chunk_embedding.embed_chunks(chunks, run, model=model, store=store, run_id="run", progress=quiet)


def quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.fixture
def run(server: LocalServer) -> Iterator[RunServices]:
    """Clients as an asset gets them."""
    with medkg.connect(address=server.address, tenant="clinic") as services:
        yield RunServices(
            embedding=services.embedding,
            reranking=services.reranking,
            vector=services.vector,
            gpu=services.gpu,
            tenant="clinic",
            trace_id="0" * 32,
        )


def test_a_document_with_a_refused_text_is_set_aside_and_its_siblings_get_their_exact_vectors(
    run: RunServices, tmp_path: Path
) -> None:
    good = [chunk("gout", 0, "Gout is treated with allopurinol."), chunk("gout", 1, "Start it at a low dose.")]
    bad = [chunk("empty", 0, "Fine so far."), chunk("empty", 1, "")]
    late = [chunk("long", 0, "aspirin " * 600), chunk("asthma", 0, "Inhaled corticosteroid comes first.")]
    done = embed([*good, *bad, *late], run, tmp_path)
    assert [one.chunk_id for one in done.chunks] == ["gout:0", "gout:1", "asthma:0"]
    assert [one.document for one in done.set_aside] == ["empty", "long"]
    assert "texts[1] is empty" in done.set_aside[0].reason
    assert "more than 256 tokens" in done.set_aside[1].reason
    alone = run.embedding.embed([one.embedding_text for one in done.chunks]).vectors
    np.testing.assert_allclose(done.vectors, alone, atol=1e-5)


def test_if_every_text_is_refused_the_error_goes_through(run: RunServices, tmp_path: Path) -> None:
    with pytest.raises(medkg.EmbeddingValidationError, match="is empty"):
        embed([chunk("empty", 0, ""), chunk("void", 0, "")], run, tmp_path)


def test_an_error_that_is_no_texts_fault_goes_through_at_once(run: RunServices, tmp_path: Path) -> None:
    with pytest.raises(medkg.ModelNotFoundError):
        embed([chunk("gout", 0, "text")], run, tmp_path, name="no-such-model")


def test_a_document_that_has_shrunk_loses_its_surplus_and_no_other_document_loses_anything(run: RunServices) -> None:
    def index(*chunks: Chunk) -> tuple[int, int, int]:
        vectors = np.random.default_rng(len(chunks)).normal(size=(len(chunks), 4)).astype(np.float32)
        return retrieval.index_chunks(chunks, vectors, run, collection="shrinking", progress=quiet)

    run.vector.create_collection("shrinking", 4)
    long = [chunk("gout", ordinal, f"part {ordinal}") for ordinal in range(300)]
    other = [chunk("asthma", ordinal, f"part {ordinal}") for ordinal in range(5)]
    assert index(*long, *other) == (305, 0, 0)
    assert index(*long[:2], *other) == (0, 7, 298)
    assert run.vector.statistics("shrinking").points == 7
    found = run.vector.search("shrinking", np.ones(4, dtype=np.float32), k=100)[0]
    assert {hit.id for hit in found} == {"gout#0", "gout#1", *(f"asthma#{ordinal}" for ordinal in range(5))}


class BreaksOff:
    """A vector client whose connection breaks at the n-th call that writes, before or after the server has done it."""

    def __init__(self, client: medkg.VectorClient, at: int, *, after: bool) -> None:
        self._client, self._left, self._after = client, at, after

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise medkg.ServiceUnavailableError(name)
            result = getattr(self._client, name)(*arguments)
            if self._left == 0:
                raise medkg.ServiceUnavailableError(name)
            return result

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before-the-server-did-it", "answer-lost"])
def test_a_surplus_is_gone_after_a_retry_wherever_the_first_try_broke_off(run: RunServices, *, after: bool) -> None:
    collection = f"broken-{after}"
    run.vector.create_collection(collection, 4)
    long = [chunk("gout", ordinal, f"part {ordinal}") for ordinal in range(600)]
    other = [chunk("asthma", ordinal, f"part {ordinal}") for ordinal in range(3)]

    def index(run: RunServices, *chunks: Chunk) -> tuple[int, int, int]:
        vectors = np.random.default_rng(1).normal(size=(len(chunks), 4)).astype(np.float32)
        return retrieval.index_chunks(chunks, vectors, run, collection=collection, progress=quiet)

    for broken_at in range(1, 100):
        index(run, *long, *other)
        broken: Any = BreaksOff(run.vector, broken_at, after=after)
        try:
            index(replace(run, vector=broken), *long[:2], *other)
        except medkg.ServiceUnavailableError:
            index(run, *long[:2], *other)
        else:
            break
        found = run.vector.search(collection, np.ones(4, dtype=np.float32), k=1000)[0]
        assert {hit.id for hit in found} == {"gout#0", "gout#1", *(f"asthma#{ordinal}" for ordinal in range(3))}
    assert 5 < broken_at < 99


def test_of_two_files_with_one_name_the_second_is_set_aside_and_told_to_be_renamed(tmp_path: Path) -> None:
    for folder, text in (("a", "Gout."), ("b", "Asthma.")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.md").write_text(f"# Notes\n\n{text}\n", encoding="utf-8")
    documents, failed = ingestion.read_documents([str(tmp_path)], progress=quiet)
    assert [document.path for document in documents] == [str(tmp_path / "a" / "notes.md")]
    assert [one.document for one in failed] == [str(tmp_path / "b" / "notes.md")]
    assert "rename" in failed[0].reason


def test_a_docling_serve_that_is_away_sets_no_pdf_aside_but_has_the_step_retried(
    tmp_path: Path, minilm_dir: Path
) -> None:
    (tmp_path / "trial.pdf").write_bytes(b"%PDF-1.7 content")
    (tmp_path / "gout.md").write_text("# Gout\n\nAllopurinol.\n", encoding="utf-8")
    documents, _ = ingestion.read_documents([str(tmp_path)], progress=quiet)
    chunker = Chunker((minilm_dir / "tokenizer.json").read_bytes(), 256)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DoclingServeUnavailableError, match="is not available") as caught:
            ingestion.chunk_documents(
                documents, chunker, docling_serve=address, quality=ChunkingQuality(256), progress=quiet
            )
    assert caught.value.failure_class is FailureClass.NETWORK


def test_an_edited_file_replaces_its_earlier_version(run: RunServices, tmp_path: Path, minilm_dir: Path) -> None:
    chunker = Chunker((minilm_dir / "tokenizer.json").read_bytes(), 256)
    path = tmp_path / "warfarin.md"
    run.vector.create_collection("edited", 4)
    for text in ("Give 20 mg.", "Give 2 mg."):
        path.write_text(f"# Warfarin\n\n{text}\n", encoding="utf-8")
        chunks = chunker.chunk(load_document(path))
        vectors = np.ones((len(chunks), 4), dtype=np.float32)
        retrieval.index_chunks(chunks, vectors, run, collection="edited", progress=quiet)
    (hit,) = run.vector.search("edited", np.ones(4, dtype=np.float32))[0]
    assert hit.payload is not None
    assert hit.payload["text"] == "Give 2 mg."
    assert hit.payload["document_sha256"] == sha256(path.read_bytes()).hexdigest()
