"""What ``watch_status`` returns: iterators that another thread or task may close while this one waits.

They are classes because a generator that is being waited in cannot be closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from typing_extensions import Self

    from medkg.results import GpuStatus

__all__ = ["AsyncStatusWatch", "StatusWatch"]


class _Watch(Protocol):
    """The Rust half of a watch."""

    def next(self) -> GpuStatus | None:
        """The next status; None when the watch is over."""
        ...

    def close(self) -> None:
        """Cancel the call."""


class _AsyncWatch(Protocol):
    """The Rust half of an awaitable watch."""

    def next(self) -> Awaitable[GpuStatus | None]:
        """The next status; None when the watch is over."""
        ...

    def close(self) -> None:
        """Cancel the call."""


class StatusWatch:
    """The status of a server's device, now and whenever it changes. Ends when the server stops or it is closed."""

    __slots__ = ("_watch",)

    def __init__(self, watch: _Watch) -> None:
        """Take the Rust half."""
        self._watch = watch

    def __iter__(self) -> Self:
        """It is an iterator."""
        return self

    def __next__(self) -> GpuStatus:
        """Wait for the next status; Ctrl-C interrupts the waiting and leaves the watch open."""
        if (status := self._watch.next()) is None:
            raise StopIteration
        return status

    def close(self) -> None:
        """Cancel the call. Any thread may: one that waits for a status then finds the watch over."""
        self._watch.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()


class AsyncStatusWatch:
    """As :class:`StatusWatch`, for ``async for``."""

    __slots__ = ("_watch",)

    def __init__(self, watch: _AsyncWatch) -> None:
        """Take the Rust half."""
        self._watch = watch

    def __aiter__(self) -> Self:
        """It is an iterator."""
        return self

    async def __anext__(self) -> GpuStatus:
        """Wait for the next status; cancelling the task that waits leaves the watch open."""
        if (status := await self._watch.next()) is None:
            raise StopAsyncIteration
        return status

    async def aclose(self) -> None:
        """Cancel the call. A task that waits for a status then finds the watch over."""
        self._watch.close()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Close."""
        await self.aclose()
