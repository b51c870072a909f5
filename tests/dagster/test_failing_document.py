"""A document whose calls fail for the network again and again: set aside in the end, if the server answers others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from upath import UPath

import medkg
from medkg.chunking import Chunk
from medkg.dagster import RunServices, chunk_embedding
from medkg.dagster.embedding_store import EmbeddingStore, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from medkg.local import LocalServer

grpc = pytest.importorskip("grpc")


class BrokenWay(grpc.GenericRpcHandler):
    """Stands before a server and passes calls on, but for those that hold certain bytes: they find nobody."""

    def __init__(self, server: LocalServer) -> None:
        self._channel = grpc.insecure_channel(server.address.removeprefix("http://"))
        self.lost = b""

    def service(self, handler_call_details: Any) -> Any:
        """Answers a unary call, of whatever service."""
        call = self._channel.unary_unary(handler_call_details.method)

        def answer(request: bytes, context: Any) -> bytes:
            if self.lost in request:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
            metadata = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-")]
            response: bytes = call(request, metadata=metadata, timeout=60)
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def way(server: LocalServer) -> Iterator[tuple[BrokenWay, str]]:
    handler = BrokenWay(server)
    before = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    port = before.add_insecure_port("127.0.0.1:0")
    before.start()
    yield handler, f"http://127.0.0.1:{port}"
    before.stop(None).wait()


def chunk(document: str, text: str) -> Chunk:
    return Chunk(f"{document}:0", document, document, f"{document}.md", 0, text, text, (), None, (), (), (), 4)


CHUNKS = [chunk("gout", "Allopurinol lowers urate."), chunk("heavy", "A heavy text."), chunk("asthma", "Inhale it.")]


@pytest.mark.parametrize(
    ("lost", "last_attempt", "set_aside"),
    [
        pytest.param(b"heavy", True, ["heavy"], id="one-document-in-the-last-attempt"),
        pytest.param(b"heavy", False, None, id="one-document-with-attempts-left"),
        pytest.param(b"", True, None, id="every-call"),
    ],
)
def test_a_document_that_keeps_failing_is_set_aside_if_the_server_answers_others(
    way: tuple[BrokenWay, str], tmp_path: Path, lost: bytes, *, last_attempt: bool, set_aside: list[str] | None
) -> None:
    handler, address = way
    handler.lost = b"nothing of the kind"
    with medkg.connect(address=address, tenant="clinic", max_attempts=1, breaker_failures=100) as services:
        (model,) = services.embedding.models()
        handler.lost = lost
        run = RunServices(
            services.embedding, services.reranking, services.vector, services.gpu, tenant="clinic", trace_id="0" * 32
        )
        store = EmbeddingStore(UPath(tmp_path), tenant="clinic", recipe=Recipe(model.digest, ""))

        def embed() -> chunk_embedding.Embedded:
            return chunk_embedding.embed_chunks(
                CHUNKS,
                run,
                model=model,
                store=store,
                run_id="run",
                set_failing_aside=last_attempt,
                progress=lambda _done, _total: None,
            )

        if set_aside is None:
            with pytest.raises(medkg.ServiceUnavailableError):
                embed()
            return
        done = embed()
        assert [one.document for one in done.set_aside] == set_aside
        assert "connection lost" in done.set_aside[0].reason
        assert [one.document_id for one in done.chunks] == ["gout", "asthma"]
        handler.lost = b"nothing of the kind"
        mended = embed()
        assert (mended.computed, mended.reused, mended.set_aside) == (1, 2, [])
