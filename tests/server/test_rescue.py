"""A result that is not finite is computed once more in fp32; if that does not help, the input fails alone, by index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest

from .conftest import Refusal
from .overflow import write_overflowing
from .test_lifecycle import eventually
from .test_scheduling import LONG, MINILM, Client, batches, rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

RESCUED, HOPELESS = "a large dose", "an infinite dose"
NEIGHBOURS = ["good", "two words", "a dose that is small"]
# What a neighbour's result may differ by: bfloat16 has 8 bits, and a product of another shape may round another way.
PARITY = 0.02


class Served(NamedTuple):
    """The models on a server of one element type."""

    server: LocalServer
    client: Client

    def embed(self, texts: list[str]) -> np.ndarray:
        return rows(self.client.embed(texts, model="embed").result())

    def scores(self, documents: list[str]) -> np.ndarray:
        """In the order of the documents."""
        [ranking] = self.client.rerank(documents, timeout=60).result().rankings
        scores = np.zeros(len(documents), "<f4")
        for document in ranking.documents:
            scores[document.index] = document.score
        return scores

    def twins(self) -> int:
        """Models that were loaded again in fp32."""
        return sum("fp32 twin" in str(line.get("message")) for line in self.server.events())


@pytest.fixture(scope="module")
def serve(
    wire: Any,
    start_server: Callable[..., LocalServer],
    open_channel: Any,
    minilm_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Served]:
    """Serves an embedding model and a reranker that overflow, in an element type; MiniLM beside them."""
    folder = tmp_path_factory.mktemp("models")
    rescued, hopeless = ["large"], ["infinite"]
    embed = write_overflowing(folder / "embed", minilm_dir, rescued=rescued, hopeless=hopeless)
    score = write_overflowing(folder / "score", minilm_dir, rescued=rescued, hopeless=hopeless, scores=True)

    def begin(dtype: str) -> Served:
        server = start_server(
            services=("embedding", "reranking"),
            embedding_models={"embed": embed, MINILM: minilm_dir},
            reranking_models={"score": score},
            data_dir=None,
            arguments=["--log", "gpu_server=debug", "--dtype", dtype],
        )
        return Served(server, Client(wire, open_channel(server), "a"))

    return begin


@pytest.fixture(scope="module")
def fp32(serve: Callable[[str], Served]) -> Served:
    return serve("f32")


@pytest.fixture(scope="module")
def bf16(serve: Callable[[str], Served]) -> Served:
    return serve("bf16")


def test_what_outgrows_bfloat16_is_answered_as_fp32_answers_it(serve: Callable[[str], Served], fp32: Served) -> None:
    bf16 = serve("bf16")
    without = bf16.embed(NEIGHBOURS)
    assert bf16.twins() == 0, "the neighbours overflow too, so nothing is shown"
    answer = bf16.embed([NEIGHBOURS[0], RESCUED, *NEIGHBOURS[1:]])
    assert bf16.twins() == 1, "nothing was not finite, so nothing is shown"
    np.testing.assert_allclose(answer[1], fp32.embed([RESCUED])[0], atol=1e-5)
    np.testing.assert_allclose(answer[[0, 2, 3]], without, atol=PARITY)
    bf16.server.stop()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_outgrows_fp32_too_fails_by_its_index(dtype: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(dtype)
    without = served.embed([*NEIGHBOURS, RESCUED])
    refusal = Refusal(served.client.embed([*NEIGHBOURS, RESCUED, HOPELESS], model="embed").exception())
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refusal.message == "texts[4]: the model's output is not finite"
    np.testing.assert_allclose(served.embed([*NEIGHBOURS, RESCUED]), without, atol=PARITY)


def test_callers_whose_texts_share_a_batch_with_bad_ones_are_answered(fp32: Served, bf16: Served) -> None:
    alone = [bf16.embed([text])[0] for text in NEIGHBOURS]
    # While this runs the others wait, and are then computed together.
    seen = len(batches(bf16.server))
    busy = bf16.client.embed([LONG] * 6, model=MINILM)
    eventually(lambda: len(batches(bf16.server)) > seen)
    before = len(batches(bf16.server, "embed"))

    def send(*texts: str) -> Any:
        return bf16.client.embed(list(texts), model="embed")

    calls = [send(NEIGHBOURS[0]), send(HOPELESS), send(NEIGHBOURS[1]), send(RESCUED), send(NEIGHBOURS[2], HOPELESS)]
    last = send(NEIGHBOURS[2])
    for call, index in ((calls[1], 0), (calls[4], 1)):
        assert Refusal(call.exception()).message.startswith(f"texts[{index}]: ")
    for call, vector in zip((calls[0], calls[2], last), alone, strict=True):
        np.testing.assert_allclose(rows(call.result())[0], vector, atol=PARITY)
    np.testing.assert_allclose(rows(calls[3].result()), fp32.embed([RESCUED]), atol=1e-5)
    assert busy.exception() is None
    [batch] = batches(bf16.server, "embed")[before:]
    assert batch["inputs"] == 7, "they were not computed together, so nothing was shown"


def test_pairs_are_rescued_too(fp32: Served, bf16: Served) -> None:
    without = bf16.scores(NEIGHBOURS)
    scores = bf16.scores([RESCUED, *NEIGHBOURS])
    assert bf16.twins() >= 1
    np.testing.assert_allclose(scores[0], fp32.scores([RESCUED])[0], atol=1e-5)
    np.testing.assert_allclose(scores[1:], without, atol=PARITY)
    refusal = Refusal(bf16.client.rerank([*NEIGHBOURS, HOPELESS, RESCUED], timeout=60).exception())
    assert refusal.code == grpc.StatusCode.INTERNAL
    assert refusal.message == "queries[0].documents[3]: the model's output is not finite"
