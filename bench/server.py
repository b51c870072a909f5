"""gpu-server under the same texts as its peers: medkg's client over loopback, one or many callers at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import medkg
from bench.measure import CandidateError
from medkg.local import LocalServer, LocalServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

TENANT = "bench"
TIMEOUT = 900.0


@contextmanager
def running(
    binary: Path, models: Mapping[str, Path], *, dtype: str, reranker: Path | None = None
) -> Iterator[LocalServer]:
    """A gpu-server on all cores, with its own defaults for all else.

    Args:
        binary: The executable.
        models: Name to folder of the embedding models.
        dtype: What it computes in, as its command line spells it.
        reranker: Folder of a reranking model.

    Raises:
        CandidateError: It does not start, or a call fails inside the block.
    """
    server = LocalServer(
        binary,
        services=("embedding", "reranking") if reranker else ("embedding",),
        embedding_models=models,
        reranking_models={"reranker": reranker} if reranker else None,
        arguments=("--dtype", dtype),
    )
    try:
        server.start()
    except (LocalServerError, OSError) as error:
        raise CandidateError(f"gpu-server --dtype {dtype} did not start: {error}") from None
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    finally:
        server.stop()
        server.log_path.unlink(missing_ok=True)


def shares(texts: Sequence[str], callers: int) -> list[list[str]]:
    """The texts dealt out to the callers, one after the other."""
    return [list(texts[caller::callers]) for caller in range(min(callers, len(texts)))]


def embed_seconds(address: str, texts: Sequence[str], callers: int) -> float:
    """Seconds until each of so many concurrent callers has had its share of the texts computed in one call.

    Raises:
        CandidateError: A call failed.
    """

    async def go() -> float:
        async with medkg.connect_async(address=address, tenant=TENANT, timeout=TIMEOUT) as services:
            await services.embedding.embed(["connect"])
            started = time.perf_counter()
            await asyncio.gather(*(services.embedding.embed(share) for share in shares(texts, callers)))
            return time.perf_counter() - started

    try:
        return asyncio.run(go())
    except medkg.MedkgError as error:
        raise CandidateError(f"gpu-server: {error}") from error


def connected(address: str) -> medkg.Services:
    """The blocking clients of medkg."""
    return medkg.connect(address=address, tenant=TENANT, timeout=TIMEOUT)
