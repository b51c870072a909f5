"""What waits is computed in a fair order, not at all when nobody wants it, and one bad input fails alone."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from .checkpoints import write_bert
from .conftest import Refusal
from .test_lifecycle import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

MINILM, RERANKER = "all-MiniLM-L6-v2", "medkg-reranker-minilm"
HIDDEN = 32  # elements of the small model
LONG = "word " * 250  # 252 tokens


class Client:
    """Calls as one tenant that do not wait for each other."""

    def __init__(self, wire: Any, channel: grpc.Channel, tenant: str) -> None:
        self.wire, self.metadata = wire, [("x-tenant-id", tenant)]
        self._embed = wire.embedding.EmbeddingServiceStub(channel).GenerateEmbeddings
        self._rerank = wire.reranking.RerankingServiceStub(channel).RerankBatch

    def embed(self, texts: list[str], model: str = "", timeout: float = 120) -> Any:
        request = self.wire.embedding.GenerateEmbeddingsRequest(texts=texts, model=model)
        return self._embed.future(request, metadata=self.metadata, timeout=timeout)

    def rerank(self, documents: list[str], timeout: float) -> Any:
        r = self.wire.reranking
        query = r.RerankQuery(query="word", documents=[r.RerankDocument(text=text) for text in documents])
        request = r.RerankBatchRequest(queries=[query])
        return self._rerank.future(request, metadata=self.metadata, timeout=timeout)


def rows(answer: Any) -> np.ndarray:
    return np.frombuffer(answer.embeddings.data, dtype="<f4").reshape(answer.embeddings.shape)


def batches(server: LocalServer, model: str = MINILM) -> list[dict[str, Any]]:
    """The forward passes so far, which a server with `--log debug` tells of."""
    lines: list[dict[str, Any]] = server.events()
    return [line for line in lines if line.get("message") == "batch computed" and line["model"] == model]


def code(call: Any) -> grpc.StatusCode:
    """How a call ended; an answer fails the test."""
    error = call.exception()
    assert error is not None
    return error.code()  # type: ignore[no-any-return]


@pytest.fixture
def start(start_server: Callable[..., LocalServer]) -> Callable[..., LocalServer]:
    """Starts a server that tells of each forward pass, without collections."""

    def begin(*arguments: str, **options: Any) -> LocalServer:
        defaults: dict[str, Any] = {"services": ("embedding",), "reranking_models": {}, "data_dir": None}
        return start_server(arguments=["--log", "gpu_server=debug", *arguments], **{**defaults, **options})

    return begin


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A small model for which the word "poison" is infinite."""
    folder = write_bert(tmp_path_factory.mktemp("models") / "tiny", minilm_dir, seed=7).folder
    vocabulary = json.loads((minilm_dir / "tokenizer.json").read_text())["model"]["vocab"]
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    # Eight bytes hold the header's length; the table of words is the first tensor behind it.
    row = 8 + int.from_bytes(raw[:8], "little") + vocabulary["poison"] * HIDDEN * 4
    raw[row : row + 4] = np.array(np.inf, "<f4").tobytes()
    weights.write_bytes(raw)
    return folder


def test_what_expires_while_it_waits_is_never_computed(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any, reranker_dir: Path
) -> None:
    server = start(services=("embedding", "reranking"), reranking_models={RERANKER: reranker_dir})
    client = Client(wire, open_channel(server), "a")
    busy = client.embed([LONG] * 60)
    eventually(lambda: bool(batches(server)))
    # Behind some 15,000 tokens of the same tenant.
    late = client.rerank([LONG] * 3, timeout=0.3)
    assert code(late) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert busy.result().usage.tokens == 60 * 252
    # The lane has been through all that waited, and the queue is empty.
    assert client.embed(["word"]).result().usage.tokens == 3
    assert batches(server, RERANKER) == []
    server.stop()


def test_a_caller_that_leaves_frees_the_queue(wire: Any, start: Callable[..., LocalServer], open_channel: Any) -> None:
    server = start("--queue-tokens", "40000")
    client = Client(wire, open_channel(server), "a")
    left = client.embed([LONG] * 130)
    eventually(lambda: bool(batches(server)))
    refused = Refusal(client.embed([LONG] * 130).exception())
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert refused.retry_seconds
    left.cancel()

    def let_in() -> bool:
        call = client.embed([LONG] * 130, timeout=2)
        # It cannot be computed in that time; being let in is enough.
        return code(call) == grpc.StatusCode.DEADLINE_EXCEEDED

    eventually(let_in)
    answer = client.embed(["mine"]).result()
    assert answer.usage.batches == 1
    assert sum(batch["inputs"] for batch in batches(server)) < 130, "what nobody waited for was computed"
    server.stop()


def test_a_flood_does_not_hold_up_another_tenant(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start()
    channel = open_channel(server)
    flood, light = Client(wire, channel, "flood"), Client(wire, channel, "light")
    calls = [flood.embed([LONG] * 40) for _ in range(12)]
    eventually(lambda: len(batches(server)) >= 2)
    waits = []
    for _ in range(5):
        answer = light.embed(["a short text of the other tenant"] * 4).result()
        waits.append(answer.usage.queue_time.ToTimedelta().total_seconds())
        time.sleep(0.05)  # it comes back again and again; it does not wait all the time
    # The flood has minutes' worth waiting, and was there first.
    assert sum(call.done() for call in calls) <= 2
    # It did not even wait for the flood's batch to end.
    assert min(waits) < min(batch["seconds"] for batch in batches(server) if batch["tokens"] > 500)
    for call in calls:
        call.cancel()
    server.stop()


def test_two_floods_share(wire: Any, start: Callable[..., LocalServer], open_channel: Any) -> None:
    server = start()
    channel = open_channel(server)
    first, second = Client(wire, channel, "first"), Client(wire, channel, "second")
    order: list[str] = []

    def send(client: Client, name: str) -> list[Any]:
        calls = [client.embed([LONG] * 8) for _ in range(6)]
        for call in calls:
            call.add_done_callback(lambda _: order.append(name))
        return calls

    earlier = send(first, "first")
    eventually(lambda: bool(batches(server)))
    later = send(second, "second")
    for call in [*earlier, *later]:
        call.result()
    eventually(lambda: len(order) == 12)
    # Neither waits for the other one's last call.
    assert "second" in order[:8]
    assert "first" in order[4:]
    server.stop()


def test_a_flood_does_not_fill_the_queue_for_others(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start("--queue-tokens", "30000")
    channel = open_channel(server)
    flood, light = Client(wire, channel, "flood"), Client(wire, channel, "light")
    calls = [flood.embed([LONG] * 10) for _ in range(20)]
    eventually(lambda: any(call.done() for call in calls))
    refused = [Refusal(call.exception()) for call in calls if call.done() and call.exception() is not None]
    assert {(refusal.code, refusal.reason) for refusal in refused} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    }
    assert all(refusal.retry_seconds for refusal in refused)
    assert light.embed(["mine"]).result().usage.tokens == 3
    for call in calls:
        call.cancel()
    server.stop()


def test_a_stream_does_not_fill_the_queue_for_itself(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any
) -> None:
    """Four of its batches are in work at once; here the queue has room for one."""
    server = start("--queue-tokens", "4000")
    e = wire.embedding
    batch = e.GenerateEmbeddingsRequest(texts=[LONG] * 10)
    answers = e.EmbeddingServiceStub(open_channel(server)).StreamEmbeddings(
        (e.StreamEmbeddingsRequest(batch=batch) for _ in range(6)), metadata=[("x-tenant-id", "a")], timeout=120
    )
    assert [answer.batch.embeddings.shape[0] for answer in answers] == [10] * 6
    server.stop()


def test_a_request_is_spread_over_the_lanes(wire: Any, start: Callable[..., LocalServer], open_channel: Any) -> None:
    server = start(threads=2)
    client = Client(wire, open_channel(server), "a")
    answer = client.embed([f"{LONG} {number}" for number in range(40)]).result()
    computed = batches(server)
    assert {batch["lane"] for batch in computed} >= {0, 1}
    assert answer.usage.batches == len(computed)
    assert sum(batch["tokens"] for batch in computed) == answer.usage.tokens
    server.stop()


@pytest.fixture(scope="module")
def poisoned(start_server: Callable[..., LocalServer], tiny_dir: Path, minilm_dir: Path) -> LocalServer:
    """A server with the model for which a word is poison."""
    return start_server(
        services=("embedding",),
        reranking_models={},
        data_dir=None,
        embedding_models={"tiny": tiny_dir, MINILM: minilm_dir},
        arguments=["--log", "gpu_server=debug"],
    )


def test_a_poisoned_input_fails_alone_and_by_index(wire: Any, poisoned: LocalServer, open_channel: Any) -> None:
    client = Client(wire, open_channel(poisoned), "a")
    alone = {text: rows(client.embed([text]).result()) for text in ("good", "fine good")}
    # While this runs the others wait, and are then computed together.
    busy = client.embed([LONG] * 6, model=MINILM)
    eventually(lambda: bool(batches(poisoned)))
    before = len(batches(poisoned, "tiny"))
    together = [client.embed(["good"]), client.embed(["good", "fine", "poison"]), client.embed(["fine good"])]
    refusal = Refusal(together[1].exception())
    assert refusal.code == grpc.StatusCode.INTERNAL
    assert "texts[2]" in refusal.message
    for call, text in ((together[0], "good"), (together[2], "fine good")):
        np.testing.assert_allclose(rows(call.result()), alone[text], atol=1e-5)
    assert busy.exception() is None
    [batch] = batches(poisoned, "tiny")[before:]
    assert batch["inputs"] == 5, "they were not computed together, so nothing was shown"


def test_in_bfloat16_a_bad_result_gets_a_second_opinion_in_fp32(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any, tiny_dir: Path
) -> None:
    server = start("--dtype", "bf16", embedding_models={"tiny": tiny_dir})
    client = Client(wire, open_channel(server), "a")

    def twins() -> int:
        return sum("fp32 twin" in str(line.get("message")) for line in server.events())

    assert rows(client.embed(["good"]).result()).shape == (1, HIDDEN)
    assert twins() == 0
    for _ in range(2):
        assert "texts[1]" in Refusal(client.embed(["good", "poison"]).exception()).message
    assert twins() == 1, "it is loaded when it is needed, and kept"
    server.stop()


def test_a_full_queue_of_searches_says_when_to_come_back(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any, tmp_path: Path
) -> None:
    server = start("--batch-tokens", "16000", services=("embedding", "vector"), data_dir=tmp_path)
    channel = open_channel(server)
    v, metadata = wire.vector, [("x-tenant-id", "a")]
    stub = v.VectorServiceStub(channel)
    stub.CreateCollection(
        v.CreateCollectionRequest(collection=v.Collection(name="c", dimension=2)), metadata=metadata, timeout=20
    )
    client = Client(wire, channel, "a")
    warm = client.embed(["word"]).result()
    assert warm.usage.batches == 1
    # One batch of seconds: searches wait until it ends.
    busy = client.embed([LONG] * 60)
    time.sleep(0.3)  # it has begun: nothing outside can see that
    query = wire.types.Tensor(data=np.ones((1, 2), "<f4").tobytes(), dtype=wire.types.DATA_TYPE_F32, shape=[1, 2])
    search = v.SearchVectorsRequest(collection="c", queries=query, k=1)
    calls = [stub.SearchVectors.future(search, metadata=metadata, timeout=60) for _ in range(400)]
    refused = [Refusal(call.exception()) for call in calls if call.exception() is not None]
    assert 0 < len(refused) < 400
    assert {(refusal.code, refusal.reason) for refusal in refused} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    }
    assert all(refusal.retry_seconds for refusal in refused)
    assert busy.exception() is None
    server.stop()


def test_a_stop_in_the_middle_of_several_lanes_exits_0(
    wire: Any, start: Callable[..., LocalServer], open_channel: Any
) -> None:
    server = start("--drain-deadline", "0.2", threads=3)
    channel = open_channel(server)
    calls = [Client(wire, channel, f"tenant-{number % 3}").embed([LONG] * 40) for number in range(27)]
    eventually(lambda: len({batch["lane"] for batch in batches(server)}) >= 3, seconds=120)
    assert server.stop() == 0
    assert {code(call) for call in calls if call.exception() is not None} <= {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    }
    assert any(call.exception() is not None for call in calls)
