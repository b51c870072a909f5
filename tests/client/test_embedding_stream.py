"""`embed_stream` against a real gpu-server: the answers of `embed`, pulled one batch after the other."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from medkg.local import LocalServer

TEXTS = [f"Patient {i} was given {i * 5} mg of aspirin." for i in range(50)]


@pytest.fixture(scope="module")
def client(server: LocalServer) -> medkg.EmbeddingClient:
    return medkg.EmbeddingClient(address=server.address, tenant="stream", max_batch_texts=16)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "binary"])
def test_the_answers_are_those_of_embed_bit_for_bit(server: LocalServer, dtype: Any) -> None:
    # One batch at a time, so that both ways compute the same texts together.
    one = medkg.EmbeddingClient(address=server.address, tenant="stream", max_batch_texts=16, max_concurrent_batches=1)
    texts = [*TEXTS[:20], "aspirin " * 300, *TEXTS[20:]]
    whole = one.embed(texts, dtype=dtype)
    parts = list(one.embed_stream(texts, dtype=dtype))
    assert [len(part.vectors) for part in parts] == [16, 16, 16, 3]
    for part, start in zip(parts, range(0, len(texts), 16), strict=True):
        rows = slice(start, start + 16)
        assert part.vectors.dtype == whole.vectors.dtype
        np.testing.assert_array_equal(part.vectors, whole.vectors[rows])
        np.testing.assert_array_equal(part.token_counts, whole.token_counts[rows])
        if whole.scales is not None:
            np.testing.assert_array_equal(part.scales, whole.scales[rows])
        assert (part.dtype, part.dimension, part.model_digest) == (dtype, 384, whole.model_digest)
        assert (part.usage.calls, part.usage.retries) == (1, 0)
    assert [part.truncated for part in parts] == [[], [4], [], []]
    assert len({(part.request_id, part.trace_id) for part in parts}) == 1


def test_many_batches_side_by_side_keep_their_order(client: medkg.EmbeddingClient) -> None:
    # Every other batch is long, and would be overtaken by the next one.
    texts = [f"Text {i}. " + "It goes on. " * (40 if i // 4 % 2 == 0 else 0) for i in range(120)]
    parts = list(client.embed_stream(iter(texts), batch_size=4, truncation="left"))
    assert [len(part.vectors) for part in parts] == [4] * 30
    expected = client.embed(texts, truncation="left").vectors
    np.testing.assert_allclose(np.concatenate([part.vectors for part in parts]), expected, atol=1e-5)


def test_no_texts_give_no_answers(client: medkg.EmbeddingClient) -> None:
    assert list(client.embed_stream([])) == []


def test_texts_are_pulled_only_as_fast_as_answers_are_taken(client: medkg.EmbeddingClient) -> None:
    pulled = 0

    def endless() -> Iterator[str]:
        nonlocal pulled
        for index in itertools.count():
            pulled += 1
            yield f"Text {index}."

    stream = client.embed_stream(endless(), batch_size=5)
    assert pulled == 0, "nothing is pulled before the first answer is asked for"
    for taken in range(1, 31):
        assert next(stream).vectors.shape == (5, 384)
        # Four batches at most, of which one has just been taken.
        assert pulled - taken * 5 <= 15
    before = pulled
    time.sleep(0.2)
    assert pulled == before
    stream.close()
    assert next(stream, None) is None


def test_what_the_texts_raise_is_raised_and_ends_the_stream(client: medkg.EmbeddingClient) -> None:
    class BrokenSourceError(Exception):
        pass

    def broken() -> Iterator[str]:
        yield from TEXTS[:30]
        raise BrokenSourceError

    stream = client.embed_stream(broken(), batch_size=1)
    first = next(stream)
    assert first.vectors.shape == (1, 384)
    with pytest.raises(BrokenSourceError):
        list(stream)
    assert next(stream, None) is None
    assert client.embed(TEXTS[:1]).vectors.shape == (1, 384)


@pytest.mark.parametrize(
    ("bad", "field"),
    [("", "texts[42]"), (None, "texts[42]"), ("\ud800", "texts[42]"), ("x" * (2 << 20), "texts[42]")],
    ids=["empty", "no str", "surrogate", "2 MiB"],
)
def test_a_bad_text_is_named_by_its_place_in_the_stream(client: medkg.EmbeddingClient, bad: Any, field: str) -> None:
    texts = [*TEXTS[:42], bad, *TEXTS]
    with pytest.raises(medkg.EmbeddingValidationError) as caught:
        list(client.embed_stream(texts, batch_size=8))
    assert caught.value.field_violations[0][0] == field
    assert field in str(caught.value)
    assert caught.value.method == "StreamEmbeddings"


@pytest.mark.parametrize("texts", ["one string", b"bytes", None, 7], ids=["str", "bytes", "None", "int"])
def test_what_is_no_iterable_of_texts_is_refused_at_once(client: medkg.EmbeddingClient, texts: Any) -> None:
    with pytest.raises(medkg.EmbeddingValidationError, match="texts"):
        client.embed_stream(texts)


def test_wrong_choices_are_named_at_once(client: medkg.EmbeddingClient) -> None:
    wrong: list[dict[str, Any]] = [
        {"dtype": "float64"},
        {"truncation": "middle"},
        {"batch_size": 0},
        {"dimensions": 0},
        {"timeout": 0.0},
        {"tenant": "no spaces"},
    ]
    for choice in wrong:
        with pytest.raises(medkg.EmbeddingValidationError, match=next(iter(choice))):
            client.embed_stream(TEXTS, **choice)
    with pytest.raises(medkg.EmbeddingValidationError, match="4096"):
        list(client.embed_stream(["a"] * 5000, batch_size=5000))
    with pytest.raises(medkg.ModelNotFoundError, match="MiniLM"):
        list(client.embed_stream(TEXTS, model="no-such-model"))


def test_tenant_and_trace_are_those_of_the_place_where_it_was_begun(peer: Any) -> None:
    client = medkg.EmbeddingClient(address=peer.address)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with medkg.context(tenant="outer", traceparent=parent):
        stream = client.embed_stream(TEXTS, request_id="stream-1")
    with medkg.context(tenant="another"), pytest.raises(medkg.ServiceError, match="has no embeddings") as caught:
        next(stream)
    [metadata] = peer.metadata
    assert (metadata["x-tenant-id"], metadata["x-request-id"]) == ("outer", "stream-1")
    assert metadata["traceparent"].split("-")[1] == parent.split("-")[1]
    assert (caught.value.tenant, caught.value.request_id) == ("outer", "stream-1")


def long_texts() -> Iterator[str]:
    """A batch that is answered soon, and then one of half a million tokens."""
    yield from ["short"] * 2000
    yield from ["word " * 250] * 2000
    raise ZeroDivisionError


@pytest.fixture(scope="module")
def narrow(start_server: Callable[..., LocalServer]) -> Iterator[LocalServer]:
    """A server that refuses every call beside a large one."""
    server = start_server(
        services=("embedding",), reranking_models={}, data_dir=None, arguments=["--queue-tokens", "2000"]
    )
    yield server
    server.stop()


@pytest.fixture
def busy(narrow: LocalServer) -> Callable[[], bool]:
    """Whether the queue of that server holds anything."""
    client = medkg.EmbeddingClient(address=narrow.address, tenant="another", max_attempts=1)

    def refused() -> bool:
        try:
            client.embed(["mine"])
        except medkg.RateLimitedError:
            return True
        time.sleep(0.5)  # the stream's batch is refused beside this question too, and must find the queue empty at last
        return False

    return refused


@pytest.mark.parametrize("how", ["closed", "dropped", "its texts fail"])
def test_a_stream_that_is_let_go_frees_the_server(
    narrow: LocalServer, busy: Callable[[], bool], wait_until: Callable[..., None], how: str
) -> None:
    # Two batches: in this queue a third one would be refused beside the second.
    client = medkg.EmbeddingClient(address=narrow.address, tenant="stream", timeout=300, max_concurrent_batches=2)
    stream = client.embed_stream(long_texts(), batch_size=2000)
    assert len(next(stream).vectors) == 2000
    wait_until(busy)
    if how == "closed":
        stream.close()
    elif how == "dropped":
        del stream
    else:
        with pytest.raises(ZeroDivisionError):
            next(stream)
    wait_until(lambda: not busy(), 20.0)


def test_a_server_that_stops_hands_its_streams_on(start_server: Callable[..., LocalServer]) -> None:
    options: dict[str, Any] = {"services": ("embedding",), "reranking_models": {}, "data_dir": None}
    first, second = start_server(**options), start_server(**options)
    client = medkg.EmbeddingClient(addresses=[first.address, second.address], tenant="stream")
    texts = [f"Text {i}." for i in range(400)]
    stream = client.embed_stream(texts, batch_size=4)
    parts = [next(stream)]
    # Which of the two it runs at is drawn.
    out = {one.address: one.pending for one in client.endpoints()}
    first, second = sorted((first, second), key=lambda server: -out[server.address])
    assert first.stop() == 0
    cut = [line for line in first.events() if "drain deadline" in str(line.get("message"))]
    assert cut == [], "an endless stream must not hold it up"
    parts += stream
    assert sum(part.usage.retries for part in parts) == 1
    expected = client.embed(texts).vectors
    np.testing.assert_allclose(np.concatenate([part.vectors for part in parts]), expected, atol=1e-5)
    second.stop()


def test_a_missing_gpu_is_said_at_once(start_server: Callable[..., LocalServer]) -> None:
    server = start_server(services=("embedding",), device="cuda", env={"CUDA_VISIBLE_DEVICES": ""}, data_dir=None)
    client = medkg.EmbeddingClient(address=server.address, tenant="stream")
    with pytest.raises(medkg.GpuNotAvailableError) as caught:
        list(client.embed_stream(TEXTS))
    assert (caught.value.attempts, caught.value.retryable) == (1, False)
    server.stop()


def test_an_awaited_stream_that_is_let_go_frees_the_server(
    narrow: LocalServer, busy: Callable[[], bool], wait_until: Callable[..., None]
) -> None:
    async def work() -> None:
        config = medkg.ClientConfig(address=narrow.address, tenant="stream", timeout=300, max_concurrent_batches=2)
        client = medkg.AsyncEmbeddingClient(config)
        answers = client.embed_stream(long_texts(), batch_size=2000)
        assert len((await anext(answers)).vectors) == 2000
        await asyncio.to_thread(wait_until, busy)
        await answers.aclose()
        await asyncio.to_thread(wait_until, lambda: not busy(), 20.0)
        waiting = asyncio.ensure_future(anext(client.embed_stream(["word " * 250] * 2000, batch_size=2000)))
        await asyncio.to_thread(wait_until, busy)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(wait_until, lambda: not busy(), 20.0)

    asyncio.run(asyncio.wait_for(work(), 200))


def test_awaited_answers_are_those_of_the_blocking_client(server: LocalServer) -> None:
    config = medkg.ClientConfig(address=server.address, tenant="stream", max_batch_texts=16)
    blocking = medkg.EmbeddingClient(config).embed(TEXTS).vectors

    async def asynchronous() -> AsyncIterator[str]:
        for text in TEXTS:
            await asyncio.sleep(0)
            yield text

    async def work() -> None:
        client = medkg.AsyncEmbeddingClient(config)
        for texts in (TEXTS, iter(TEXTS), asynchronous()):
            parts = [part.vectors async for part in client.embed_stream(texts)]
            assert [len(part) for part in parts] == [16, 16, 16, 2]
            np.testing.assert_allclose(np.concatenate(parts), blocking, atol=1e-5)
        with pytest.raises(medkg.EmbeddingValidationError, match=r"texts\[17\]"):
            [part async for part in client.embed_stream([*TEXTS[:17], "", *TEXTS])]
        with pytest.raises(medkg.EmbeddingValidationError, match="texts"):
            client.embed_stream("one string")

    asyncio.run(work())


def test_awaited_answers_pull_only_as_fast_as_they_are_taken(server: LocalServer) -> None:
    pulled = 0

    class BrokenSourceError(Exception):
        pass

    async def source() -> AsyncIterator[str]:
        nonlocal pulled
        for index in range(150):
            pulled += 1
            yield f"Text {index}."
        raise BrokenSourceError

    async def work() -> None:
        client = medkg.AsyncEmbeddingClient(address=server.address, tenant="stream")
        taken = 0

        async def take() -> None:
            nonlocal taken
            async for part in client.embed_stream(source(), batch_size=5):
                taken += len(part.vectors)
                assert pulled - taken <= 15

        with pytest.raises(BrokenSourceError):
            await take()
        assert taken >= 130

    asyncio.run(work())


def test_a_signal_interrupts_a_waiting_stream(script: Callable[..., Any], silent: str) -> None:
    running = script(
        """
        import sys, medkg
        client = medkg.EmbeddingClient(address=sys.argv[1], tenant="demo", timeout=3600)
        stream = client.embed_stream(iter(["aspirin"] * 1000))
        print("waiting", flush=True)
        try:
            next(stream)
        except KeyboardInterrupt:
            print("interrupted", next(stream, None), flush=True)
        """,
        silent,
    )
    assert running.line() == "waiting"
    time.sleep(0.3)  # into the call; a signal before it would prove nothing, but fail nothing either
    running.process.send_signal(signal.SIGINT)
    assert running.line(limit=10.0) == "interrupted None"
    done = running.finish(limit=10.0)
    assert (done.status, done.err) == (0, "")


def test_a_forked_child_neither_uses_nor_ends_the_stream_of_its_parent(
    script: Callable[..., Any], server: LocalServer
) -> None:
    done = script(
        """
        import gc, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: fork in a process with threads
        import medkg

        client = medkg.EmbeddingClient(address=sys.argv[1], tenant="demo")
        texts = [f"Text {i}." for i in range(40)]
        stream = client.embed_stream(texts, batch_size=4)
        print(len(next(stream).vectors), flush=True)
        if (child := os.fork()) == 0:
            try:
                next(stream)
            except medkg.MedkgError as error:
                print(error, flush=True)
            del stream
            gc.collect()
            print(sum(len(part.vectors) for part in client.embed_stream(texts, batch_size=4)), flush=True)
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        print(sum(len(part.vectors) for part in stream), flush=True)
        """,
        server.address,
    ).finish()
    assert done.status == 0, done.err
    first, refusal, *rest = done.out.splitlines()
    assert (first, rest) == ("4", ["40", "7", "36"])
    assert "forked" in refusal


def test_a_process_that_ends_with_streams_under_way_ends_quietly(
    script: Callable[..., Any], server: LocalServer
) -> None:
    for _ in range(5):
        done = script(
            """
            import asyncio, itertools, sys, medkg
            config = medkg.ClientConfig(address=sys.argv[1], tenant="demo")
            endless = medkg.EmbeddingClient(config).embed_stream(map(str, itertools.count()), batch_size=4)
            next(endless)
            async def main():
                answers = medkg.AsyncEmbeddingClient(config).embed_stream(map(str, itertools.count()), batch_size=4)
                await anext(answers)
                asyncio.ensure_future(anext(answers))
                await asyncio.sleep(0)
                print("leaving", flush=True)
            asyncio.run(main())
            """,
            server.address,
        ).finish(limit=30.0)
        assert (done.status, done.out, done.err) == (0, "leaving\n", "")
