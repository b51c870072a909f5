"""What ``embed_stream`` does with texts: it pulls them where the caller is, hands them over and yields the answers."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator, Iterable

    from medkg.results import EmbeddingResult

__all__: list[str] = []


class _Feed(Protocol):
    def push(self, text: str, /) -> bool:
        """Add a text; True if an answer is to be taken before the next one."""
        ...

    def finish(self) -> None:
        """Say that no more texts come."""

    def close(self) -> None:
        """Cancel what is not answered."""


class Stream(_Feed, Protocol):
    """The Rust half of a stream."""

    def next(self) -> EmbeddingResult | None:
        """The next answer; None when there is none to wait for."""
        ...


class AsyncStream(_Feed, Protocol):
    """The Rust half of an awaitable stream."""

    def next(self) -> Awaitable[EmbeddingResult | None]:
        """The next answer; None when there is none to wait for."""
        ...


def answers(stream: Stream, texts: Iterable[str]) -> Generator[EmbeddingResult, None, None]:
    """The answers about all texts, which are pulled only as fast as answers are taken."""
    try:
        for text in texts:
            if stream.push(text) and (answer := stream.next()) is not None:
                yield answer
        stream.finish()
        while (answer := stream.next()) is not None:
            yield answer
    finally:
        stream.close()


async def async_answers(
    stream: AsyncStream, texts: Iterable[str] | AsyncIterable[str]
) -> AsyncGenerator[EmbeddingResult, None]:
    """As :func:`answers`, on the event loop."""
    try:
        async for text in _each(texts):
            if stream.push(text) and (answer := await stream.next()) is not None:
                yield answer
        stream.finish()
        while (answer := await stream.next()) is not None:
            yield answer
    finally:
        stream.close()


async def _each(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text
