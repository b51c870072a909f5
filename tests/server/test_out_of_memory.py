"""A batch that does not fit into memory is split once; what does not fit alone fails alone, and the server lives on.

The memory is really too small: the running server's address space is limited. Its model needs next to nothing but one
tensor of 2 MiB per token, so nothing else comes near the limit.
"""

from __future__ import annotations

import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest

import medkg

from .checkpoints import write_bert
from .conftest import Refusal
from .test_lifecycle import eventually
from .test_scheduling import LONG, MINILM, Client, batches, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from medkg.local import LocalServer

HIDDEN, WIDE = 16, 512 * 1024  # WIDE f32 per token are the large tensor
TOKENS = 512  # of the longest text
# Half of the longest text's tensor fits, the whole does not; a quarter of a gigabyte lies on either side.
ROOM = 4 * WIDE * TOKENS * 3 // 4


def text(word: str, tokens: int) -> str:
    return " ".join([word] * (tokens - 2))


class Wide(NamedTuple):
    """The server."""

    server: LocalServer
    client: Client

    def embed(self, *texts: str) -> Any:
        return self.client.embed(list(texts), model="wide")

    def splits(self) -> int:
        """Batches that were split so far."""
        return sum("split once" in str(line.get("message")) for line in self.server.events())


def address_space(pid: int) -> int:
    """Bytes that a process has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@pytest.fixture(scope="module")
def wide(
    wire: Any,
    start_server: Callable[..., LocalServer],
    open_channel: Any,
    minilm_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Wide:
    """The server, with all the memory there is."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    write_bert(folder, minilm_dir, seed=5, hidden=HIDDEN, wide=WIDE, positions=TOKENS)
    server = start_server(
        services=("embedding",),
        embedding_models={MINILM: minilm_dir, "wide": folder},
        reranking_models={},
        data_dir=None,
        arguments=["--log", "gpu_server=debug"],
    )
    served = Wide(server, Client(wire, open_channel(server), "a"))
    # Threads, their stacks and heaps are there afterwards.
    served.embed(text("warm", TOKENS)).result()
    return served


@contextmanager
def little_memory(server: LocalServer) -> Iterator[None]:
    """Lets a running server take no more than `ROOM` beyond what it has."""
    unlimited = resource.prlimit(server.pid, resource.RLIMIT_AS)
    resource.prlimit(server.pid, resource.RLIMIT_AS, (address_space(server.pid) + ROOM, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_AS, unlimited)


@pytest.fixture
def tight(wide: Wide) -> Iterator[Wide]:
    """The server while it has too little memory."""
    with little_memory(wide.server):
        yield wide


def test_a_batch_that_does_not_fit_is_split_once_and_computed(tight: Wide) -> None:
    texts = [text(word, TOKENS // 2) for word in ("liver", "kidney")]
    alone = [rows(tight.embed(one).result())[0] for one in texts]
    assert tight.splits() == 0
    answer = tight.embed(*texts).result()
    assert tight.splits() == 1, "it fitted, so nothing was shown"
    np.testing.assert_allclose(rows(answer), alone, atol=1e-5)


def test_a_text_that_does_not_fit_alone_fails_by_its_index(wide: Wide) -> None:
    texts = ["good", "two words", text("liver", TOKENS), "a third"]
    before = wide.splits()
    with little_memory(wide.server):
        refusal = Refusal(wide.embed(*texts).exception())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GPU_OUT_OF_MEMORY")
        assert refusal.message.startswith("texts[2]: the device is out of memory")
        assert refusal.retry_seconds is None
        assert wide.splits() == before + 1
        assert rows(wide.embed(*texts[:2]).result()).shape == (2, HIDDEN)
    # Running out of memory closed nothing: once there is enough, the same call is answered.
    assert rows(wide.embed(*texts).result()).shape == (4, HIDDEN)


def test_callers_whose_texts_share_a_batch_with_one_that_does_not_fit_are_answered(tight: Wide) -> None:
    texts = ["good", "two words", "a dose that is small"]
    alone = [rows(tight.embed(one).result())[0] for one in texts]
    # While this runs the others wait, and are then computed together.
    seen = len(batches(tight.server))
    busy = tight.client.embed([LONG] * 6, model=MINILM)
    eventually(lambda: len(batches(tight.server)) > seen)
    before = len(batches(tight.server, "wide"))
    calls = [tight.embed(one) for one in texts]
    large = tight.embed(text("liver", TOKENS))
    refusal = Refusal(large.exception())
    assert (refusal.reason, refusal.message.split(":")[0]) == ("GPU_OUT_OF_MEMORY", "texts[0]")
    for call, vector in zip(calls, alone, strict=True):
        np.testing.assert_allclose(rows(call.result())[0], vector, atol=1e-5)
    assert busy.exception() is None
    [batch] = batches(tight.server, "wide")[before:]
    assert batch["inputs"] == 4, "they were not computed together, so nothing was shown"


def test_the_python_client_raises_it_with_the_index_among_all_texts(tight: Wide) -> None:
    """Two texts per request: the one that does not fit is the second of the second request."""
    client = medkg.EmbeddingClient(
        address=tight.server.address, tenant="b", max_batch_texts=2, max_concurrent_batches=1
    )
    with client, pytest.raises(medkg.GpuOutOfMemoryError) as caught:
        client.embed(["good", "two words", "a third", text("liver", TOKENS)], model="wide")
    assert "texts[3]: the device is out of memory" in str(caught.value)
    assert (caught.value.retryable, caught.value.attempts) == (False, 1)
