"""What ``export`` returns: iterators that another thread or task may close while this one waits.

They are classes because a generator that is being waited in cannot be closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from typing_extensions import Self

    from medkg.results import CollectionInfo, ExportBatch

__all__ = ["AsyncVectorExport", "VectorExport"]


class _Reading(Protocol):
    """The Rust half of an export."""

    def info(self) -> CollectionInfo:
        """What the collection is."""
        ...

    def next(self) -> ExportBatch | None:
        """The next points; None when there are no more."""
        ...

    def close(self) -> None:
        """Cancel the call."""


class _AsyncReading(Protocol):
    """The Rust half of an awaitable export."""

    def info(self) -> CollectionInfo:
        """What the collection is."""
        ...

    def next(self) -> Awaitable[ExportBatch | None]:
        """The next points; None when there are no more."""
        ...

    def close(self) -> None:
        """Cancel the call."""


class VectorExport:
    """All points of a collection as they were at one moment, batch by batch. Close it, or leave a ``with`` block.

    Attributes:
        collection: What the collection is.
    """

    __slots__ = ("_reading", "collection")

    def __init__(self, reading: _Reading) -> None:
        """Take the Rust half."""
        self._reading = reading
        self.collection: CollectionInfo = reading.info()

    def __iter__(self) -> Self:
        """It is an iterator."""
        return self

    def __next__(self) -> ExportBatch:
        """Wait for the next points; Ctrl-C interrupts the waiting and leaves the export open."""
        if (batch := self._reading.next()) is None:
            raise StopIteration
        return batch

    def close(self) -> None:
        """Cancel the call. Any thread may: one that waits for points then finds the export over."""
        self._reading.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close."""
        self.close()


class AsyncVectorExport:
    """As :class:`VectorExport`, for ``async for``.

    Attributes:
        collection: What the collection is.
    """

    __slots__ = ("_reading", "collection")

    def __init__(self, reading: _AsyncReading) -> None:
        """Take the Rust half."""
        self._reading = reading
        self.collection: CollectionInfo = reading.info()

    def __aiter__(self) -> Self:
        """It is an iterator."""
        return self

    async def __anext__(self) -> ExportBatch:
        """Wait for the next points; cancelling the task that waits leaves the export open."""
        if (batch := await self._reading.next()) is None:
            raise StopAsyncIteration
        return batch

    async def aclose(self) -> None:
        """Cancel the call. A task that waits for points then finds the export over."""
        self._reading.close()

    async def __aenter__(self) -> Self:
        """Close at the end of the block."""
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Close."""
        await self.aclose()
