"""What a call cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost; the parts of a split call are added up.

    Attributes:
        tokens: Tokens computed, special tokens included, padding not.
        batches: Forward passes that held a part of the call.
        queue_time: Seconds between tokenisation and the first forward pass.
        compute_time: Seconds of those forward passes, which are shared with other calls.
        device: Where it was computed, e.g. ``"cpu"`` or ``"cuda:0"``; several are separated by commas.
        calls: Requests that the call was split into.
        retries: Attempts beyond the first, over all requests.
    """

    tokens: int
    batches: int
    queue_time: float
    compute_time: float
    device: str
    calls: int
    retries: int
