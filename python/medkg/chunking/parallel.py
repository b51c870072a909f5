"""One function over many items, in processes of its own, with the results in the order of the items.

Why processes: Docling's parsers and chunkers hold Python's lock, so threads make it slower, not faster. Why not
`ProcessPoolExecutor`: a document that kills its process would break the whole pool, and leaving early would wait for
what has begun. Here such a document fails alone, its process is replaced, and leaving ends the processes at once.

No more than two items for each process are under way or wait to be taken, however slow the one who takes them.
Processes are spawned: a forked one would inherit threads and locks that it cannot use.
"""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import SpawnProcess

Item = TypeVar("Item")
Result = TypeVar("Result")

_FOR_EACH_PROCESS = 2
#: Seconds for a process that has closed its pipe to be gone, so that its own exit code is told.
_DYING = 5.0


@dataclass(frozen=True, slots=True)
class _Worker:
    process: SpawnProcess
    connection: Connection

    @classmethod
    def start(cls, function: Callable[[Any], Any]) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours: Any
        theirs: Any
        ours, theirs = context.Pipe()  # of another class on Windows
        # A daemon: it ends with this process even where nobody comes to end it.
        process = context.Process(target=_work, args=(theirs, function), daemon=True)
        process.start()
        theirs.close()
        return cls(process, ours)

    def end(self) -> int | None:
        """End the process, whatever it does; give its exit code."""
        # Not the gentle way: a parser in C would see the signal only when it is done.
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


@dataclass(frozen=True, slots=True)
class _Task(Generic[Item]):
    place: int
    item: Item


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    lost: Callable[[Item, int | None], Result],
) -> Iterator[Result]:
    """Give the function's result for each item, in their order, as they become ready.

    Args:
        function: what to do with an item; it is pickled, as are items and results. What it raises is raised here.
        items: taken a few at a time.
        workers: how many processes work.
        lost: gives the result for an item whose process died at it, from the item and the exit code.

    Raises:
        RuntimeError: a process cannot start.
    """
    source = enumerate(items)
    busy: dict[Connection, tuple[_Worker, _Task[Item] | None]] = {}
    idle: list[_Worker] = []
    ready: dict[int, Result] = {}
    given = taken = 0
    try:
        for _ in range(workers):
            _start(function, busy)
        while True:
            room = max(0, workers * _FOR_EACH_PROCESS - (given - taken))
            for place, item in islice(source, min(room, len(idle))):
                worker = idle.pop()
                worker.connection.send(item)
                busy[worker.connection] = (worker, _Task(place, item))
                given += 1
            if taken in ready:
                yield ready.pop(taken)
                taken += 1
            elif taken == given and idle:
                return  # there was room and somebody to do it: the items are at an end
            else:
                _collect(function, busy, idle, ready, lost)
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            worker.end()


def _start(function: Callable[[Any], Any], busy: dict[Connection, tuple[_Worker, _Task[Any] | None]]) -> None:
    worker = _Worker.start(function)
    busy[worker.connection] = (worker, None)


def _collect(
    function: Callable[[Any], Any],
    busy: dict[Connection, tuple[_Worker, _Task[Any] | None]],
    idle: list[_Worker],
    ready: dict[int, Any],
    lost: Callable[[Any, int | None], Any],
) -> None:
    """Wait until a process says something; take it, and replace a process that died."""
    for connection in wait(list(busy)):
        assert isinstance(connection, Connection)  # noqa: S101 -- nothing else was put in
        worker, begun = busy.pop(connection)
        try:
            answer = _answer(worker, begun, lost)
        except BaseException:
            worker.end()
            raise
        if begun is not None:
            ready[begun.place] = answer
        if connection.closed:
            _start(function, busy)
        else:
            idle.append(worker)


def _answer(worker: _Worker, begun: _Task[Any] | None, lost: Callable[[Any, int | None], Any]) -> Any:
    """Take what a process says: that it is there, a result, an error, or nothing because it died."""
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join(_DYING)
        code = worker.end()
        if begun is None:
            message = (
                f"a process for chunking could not start (exit code {code}); its error stands above. A script that"
                " starts processes does so under `if __name__ == '__main__':`"
            )
            raise RuntimeError(message) from None
        return lost(begun.item, code)
    if kind == "error":
        raise value
    return value


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Work in the process until the other side is gone."""
    # Ctrl-C reaches the whole group; the one who started us decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(("ready", None))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        try:
            answer = ("result", function(item))
        except Exception as error:  # noqa: BLE001 -- it is raised on the other side
            answer = ("error", error)
        connection.send(answer)
