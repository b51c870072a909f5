"""A TCP proxy in front of a server: the wire between the two can be held, slowed, reset and refused."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
PIECE = 65536
NOTHING_LINGERS = struct.pack("ii", 1, 0)


class Ends(NamedTuple):
    """A connection that is passed on."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter


class Proxy:
    """Passes bytes on between clients and `target`, an address `http://HOST:PORT`, until something else is asked for.

    It runs on an event loop of its own in a thread.
    """

    def __init__(self, target: str, *, listens: str = "127.0.0.1") -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._down = False
        self._cut_after: int | None = None
        self._piece: tuple[int, float] | None = None
        self._ends: set[Ends] = set()
        self._knocking = 0
        self.accepted = 0
        """Connections that clients have made, or tried to."""
        self.most_knocking = 0
        """Most of those that were refused at the same time."""
        self._loop = asyncio.new_event_loop()
        family = socket.AF_INET6 if ":" in listens else socket.AF_INET
        self._listener = socket.create_server((listens, 0), family=family, backlog=256)
        place = f"[{listens}]" if ":" in listens else listens
        self.address = f"http://{place}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, sock=self._listener))

    def go_down(self) -> None:
        """From now on connections are reset: those that are there at once, new ones after a moment."""
        self._down, self.most_knocking = True, 0
        self.reset()

    def come_back(self) -> None:
        """Ends `go_down`."""
        self._down = False

    def reset(self) -> None:
        """Resets the connections that are there (RST to both sides)."""

        async def reset() -> None:
            for ends in list(self._ends):
                _reset(ends)

        self._run(reset())

    def reset_after(self, answered: int) -> None:
        """Resets the connection over which that many bytes of answers have come from now on; once."""
        self._cut_after = answered

    @property
    def was_reset(self) -> bool:
        """True if what `reset_after` asked for has been done."""
        return self._cut_after is None

    def trickle(self, size: int, pause: float) -> None:
        """From now on answers come in pieces of so many bytes, with a pause after each."""
        self._piece = (size, pause)

    def flow(self) -> None:
        """Ends `trickle`."""
        self._piece = None

    def stop(self) -> None:
        """Ends it and its connections."""
        self._down = True
        self.reset()
        self._server.close()

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        self._listener.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _connected(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._down:
            self._knocking += 1
            self.most_knocking = max(self.most_knocking, self._knocking)
            # Long enough for others to come at the same time, if there were any.
            await asyncio.sleep(0.05)
            self._knocking -= 1
            _abort(client)
            return
        try:
            answers, server = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(client)
            return
        ends = Ends(client, server)
        self._ends.add(ends)
        try:
            await asyncio.gather(self._ask(reader, server), self._answer(answers, ends))
        except OSError:
            _reset(ends)
        finally:
            self._ends.discard(ends)
            client.close()
            server.close()

    @staticmethod
    async def _ask(reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE):
            server.write(data)
            await server.drain()
        with suppress(OSError):
            server.write_eof()

    async def _answer(self, answers: asyncio.StreamReader, ends: Ends) -> None:
        while data := await answers.read(PIECE):
            while data:
                size, pause = self._piece or (PIECE, 0.0)
                if self._cut_after is not None:
                    self._cut_after -= len(data)
                    if self._cut_after <= 0:
                        self._cut_after = None
                        _reset(ends)
                        return
                ends.client.write(data[:size])
                await ends.client.drain()
                data = data[size:]
                if pause:
                    await asyncio.sleep(pause)
        with suppress(OSError):
            ends.client.write_eof()


def _reset(ends: Ends) -> None:
    for writer in ends:
        _abort(writer)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Closes with RST: what lingers is thrown away."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOTHING_LINGERS)
    writer.transport.abort()
