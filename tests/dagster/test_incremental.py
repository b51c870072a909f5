"""Nothing is embedded twice: not by the next run, not after SIGKILL, not for another file with the same text."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from upath import UPath

import medkg
from medkg.chunking import Chunk
from medkg.dagster import RunServices, chunk_embedding
from medkg.dagster.embedding_store import EmbeddingStore, Recipe, content_sha256

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from medkg import ModelInfo
    from medkg.local import LocalServer

PLAIN = Recipe("d" * 64, "")


def chunk(document: str, ordinal: int, text: str) -> Chunk:
    where = (document, document, f"{document}.md", ordinal, text, text)
    return Chunk(f"{document}:{ordinal}", *where, (), None, (), (), (), 4)


@pytest.fixture(scope="module")
def run(server: LocalServer) -> Iterator[RunServices]:
    with medkg.connect(address=server.address, tenant="clinic") as services:
        clients = (services.embedding, services.reranking, services.vector, services.gpu)
        yield RunServices(*clients, tenant="clinic", trace_id="0" * 32)


@pytest.fixture(scope="module")
def model(run: RunServices) -> ModelInfo:
    (model,) = run.embedding.models()
    return model


def embed(
    chunks: list[Chunk], run: RunServices, model: ModelInfo, base: Path, **options: Any
) -> chunk_embedding.Embedded:
    recipe = Recipe(model.digest, model.prompts.get(model.default_prompt or "", ""))
    store = EmbeddingStore(UPath(base), tenant=options.pop("tenant", "clinic"), recipe=recipe)
    options = {"run_id": "run-1", "progress": lambda _done, _total: None, **options}
    return chunk_embedding.embed_chunks(chunks, run, model=model, store=store, **options)


def test_only_what_is_new_is_embedded_and_each_row_says_by_which_run(
    run: RunServices, model: ModelInfo, tmp_path: Path
) -> None:
    old = [chunk("gout", 0, "Gout is treated with allopurinol."), chunk("gout", 1, "Start it at a low dose.")]
    first = embed(old, run, model, tmp_path)
    assert (first.computed, first.reused) == (2, 0)
    again = embed(old, run, model, tmp_path, run_id="run-2")
    assert (again.computed, again.reused) == (0, 2)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    edited = [old[0], replace(old[1], embedding_text="Start it at 100 mg."), chunk("copy", 0, old[0].embedding_text)]
    third = embed(edited, run, model, tmp_path, run_id="run-3")
    assert (third.computed, third.reused) == (1, 2)
    np.testing.assert_array_equal(third.vectors[2], first.vectors[0])
    runs = [third.known[content_sha256(one.embedding_text)].embedded_by for one in third.chunks]
    assert runs == ["run-1", "run-3", "run-1"]


def test_one_text_in_many_documents_is_embedded_once(run: RunServices, model: ModelInfo, tmp_path: Path) -> None:
    done = embed([chunk(f"copy-{n}", 0, "The same words.") for n in range(2000)], run, model, tmp_path)
    assert (done.computed, done.vectors.shape) == (1, (2000, 384))


def test_no_tenant_finds_the_vectors_of_another(run: RunServices, model: ModelInfo, tmp_path: Path) -> None:
    chunks = [chunk("gout", 0, "Gout is treated with allopurinol.")]
    assert embed(chunks, run, model, tmp_path, tenant="clinic-a").computed == 1
    assert embed(chunks, run, model, tmp_path, tenant="clinic-b").computed == 1


def test_another_prompt_embeds_anew(prompted_server: LocalServer, tmp_path: Path) -> None:
    with medkg.connect(address=prompted_server.address, tenant="clinic") as services:
        run = RunServices(*(services.embedding,) * 4, tenant="clinic", trace_id="")  # type: ignore[arg-type]
        models = {one.name: one for one in services.embedding.models()}
        assert models["by-default"].digest == models["named"].digest
        chunks = [chunk("gout", 0, "Gout is treated with allopurinol.")]
        plain, prompted = (embed(chunks, run, models[name], tmp_path) for name in ("named", "by-default"))
    assert (plain.computed, prompted.computed) == (1, 1)
    assert not np.allclose(plain.vectors, prompted.vectors)


def test_other_weights_find_nothing_and_a_model_exchanged_on_the_way_is_refused(
    run: RunServices, model: ModelInfo, tmp_path: Path
) -> None:
    chunks = [chunk("gout", 0, "Gout is treated with allopurinol.")]
    assert embed(chunks, run, model, tmp_path).computed == 1
    with pytest.raises(medkg.ValidationError, match="0" * 64):  # it was looked for, and what came was of other weights
        embed(chunks, run, replace(model, digest="0" * 64), tmp_path)
    assert len(list(tmp_path.rglob("part-*.parquet"))) == 1


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
import medkg
from medkg.dagster import embedding_store, chunk_embedding
from tests.dagster import test_incremental as here

def add(self, *arguments, **options):
    kept(self, *arguments, **options)
    if len(list(self._folder.glob("part-*"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

kept, embedding_store.EmbeddingStore.add = embedding_store.EmbeddingStore.add, add
with medkg.connect(address=sys.argv[1], tenant="clinic") as services:
    run = here.RunServices(services.embedding, None, None, None, tenant="clinic", trace_id="")
    (model,) = services.embedding.models()
    here.embed(here.many(), run, model, sys.argv[2])
"""


def many() -> list[Chunk]:
    return [chunk(f"note-{n:04d}", 0, f"Patient {n} has gout.") for n in range(3 * chunk_embedding.GROUP_CHUNKS)]


def test_a_step_that_is_killed_goes_on_where_it_was(
    run: RunServices, model: ModelInfo, server: LocalServer, tmp_path: Path
) -> None:
    root = str(UPath(__file__).parents[2])
    command = [sys.executable, "-W", "ignore", "-c", KILLED, server.address, str(tmp_path), root]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    done = embed(many(), run, model, tmp_path, run_id="run-2")
    assert (done.computed, done.reused) == (chunk_embedding.GROUP_CHUNKS, 2 * chunk_embedding.GROUP_CHUNKS)
    assert done.vectors.shape == (3 * chunk_embedding.GROUP_CHUNKS, 384)


def test_many_small_files_become_one_while_others_read_and_write(tmp_path: Path) -> None:
    vectors = np.random.default_rng(3).normal(size=(70, 8)).astype(np.float32)
    digests = [content_sha256(str(row)) for row in range(70)]

    def store() -> EmbeddingStore:
        return EmbeddingStore(UPath(tmp_path), tenant="clinic", recipe=PLAIN)

    for row in range(65):
        store().add([digests[row]], vectors[row : row + 1], run_id="run-1")
    store().add(digests[:1], vectors[:1], run_id="run-1")  # what two steps computed at once
    missing: list[int] = []
    reading = threading.Event()

    def read() -> None:
        for _ in range(40):
            missing.append(65 - len(store().find(digests[:65])))
            reading.set()

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait()
    store().tidy()
    store().add(digests[65:], vectors[65:], run_id="run-2")
    reader.join()
    assert set(missing) == {0}
    assert len(list(tmp_path.rglob("part-*.parquet"))) == 2
    found = store().find(digests)
    np.testing.assert_array_equal([found[digest].vector for digest in digests], vectors)


def test_a_damaged_file_costs_its_texts_and_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddingStore(UPath(tmp_path), tenant="clinic", recipe=PLAIN)
    for text in ("gout", "asthma"):
        store.add([content_sha256(text)], np.ones((1, 4), np.float32), run_id="run-1")
    damaged = min(tmp_path.rglob("part-*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert len(store.find([content_sha256("gout"), content_sha256("asthma")])) == 1
    assert str(damaged) in caplog.text
