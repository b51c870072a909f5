"""What the Rust client tells on its way, for Python's logging. The Rust half calls this.

Breakers that change, servers that come and go, a cache's Redis that fails: all of it is told in the log
``medkg.client``, by whatever thread comes by, with the time at which it happened. What it is about (``address``,
``tenant``, ``request_id``, ``trace_id`` and more) are attributes of the record.
"""

from __future__ import annotations

import logging

__all__ = ["tell"]

_log = logging.getLogger("medkg.client")
_TAKEN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def tell(level: str, at: float, message: str, fields: dict[str, str]) -> None:
    """Log an event: its level's name, seconds since 1970, what happened, and what about."""
    number: int = getattr(logging, level.replace("WARN", "WARNING"))
    if not _log.isEnabledFor(number):
        return
    extra = {name: value for name, value in fields.items() if name not in _TAKEN}
    told = ", ".join(f"{name}: {value}" for name, value in fields.items())
    text = f"{message} ({told})" if told else message
    record = _log.makeRecord(_log.name, number, __file__, 0, text, (), None, "tell", extra)
    record.created = at
    record.msecs = (at % 1) * 1000
    _log.handle(record)
