"""Callers that keep servers busy while something is done to them, and what their calls came to."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

TEXT = ["Aspirin inhibits platelet aggregation."]


class Call(NamedTuple):
    """A call that has ended."""

    begun: float
    ended: float
    digest: str
    """Of the model that answered; each server of a fleet has one of its own."""
    error: medkg.MedkgError | None


class Load:
    """Threads that embed texts, one call after the other, until the block ends."""

    def __init__(self, client: medkg.EmbeddingClient, callers: int = 6, texts: Sequence[str] = TEXT) -> None:
        self._client, self._texts = client, texts
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(callers)]
        self.calls: list[Call] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a call hangs"

    def _work(self) -> None:
        while not self._over.is_set():
            begun, digest, failure = time.monotonic(), "", None
            try:
                digest = self._client.embed(self._texts, model="tiny").model_digest
            except medkg.MedkgError as error:
                failure = error
            self.calls.append(Call(begun, time.monotonic(), digest, failure))
            if failure is not None:
                # Whoever is told when to come back comes back then, all at the same time.
                self._over.wait(failure.retry_after or 0.01)

    def errors(self) -> list[medkg.MedkgError]:
        """Of the calls that failed."""
        return [call.error for call in self.calls if call.error is not None]

    def wait_for(self, number: int, of: Callable[[Call], bool] = lambda call: call.error is None) -> None:
        """Until so many calls that begin after now have ended `of` a kind: with an answer, unless told otherwise."""
        since, deadline = time.monotonic(), time.monotonic() + 60
        seen, found = len(self.calls), 0
        while found < number:
            assert time.monotonic() < deadline, f"{found} of {number} calls in a minute; errors: {self.errors()[-3:]}"
            time.sleep(0.005)
            new = self.calls[seen:]
            seen += len(new)
            found += sum(call.begun >= since and of(call) for call in new)

    def slowest(self, since: float, until: float) -> float | None:
        """The 99th percentile of the durations of the calls that ended between two moments; None if there are few."""
        durations = sorted(call.ended - call.begun for call in self.calls if since <= call.ended < until)
        return durations[int(len(durations) * 0.99)] if len(durations) >= 50 else None
