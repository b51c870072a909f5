"""Holds a pool back by setting its limit to 0, and puts back the limit it had.

The limit lives in the instance, and so does what it was before: in a sensor's cursor it would be lost when the daemon
dies between setting the limit and storing the cursor, and the pool would stay shut for ever.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dagster import DagsterInstance

_KEY: Final = "medkg/pool_limit_before/{pool}"


def hold_pool(instance: DagsterInstance, pool: str) -> None:
    """Sets the pool's limit to 0: its steps wait, those at work go on. The limit it had is remembered, once."""
    if _remembered(instance, pool) is None:
        limits = {limit.name: limit for limit in instance.event_log_storage.get_pool_limits()}
        found = limits.get(pool)
        before = None if found is None or found.from_default else found.limit
        _remember(instance, pool, {"limit": before})
    instance.event_log_storage.set_concurrency_slots(pool, 0)


def release_pool(instance: DagsterInstance, pool: str) -> int | None:
    """Puts back the limit that the pool had before `hold_pool`; returns it, None where it had none of its own.

    A limit that somebody has set meanwhile stays. Does nothing for a pool that is not held.
    """
    remembered = _remembered(instance, pool)
    if remembered is None:
        return None
    before = remembered["limit"]
    limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    if limits.get(pool) == 0:
        if before is None:
            instance.event_log_storage.delete_concurrency_limit(pool)
        else:
            instance.event_log_storage.set_concurrency_slots(pool, before)
    _remember(instance, pool, None)
    return before


def is_held(instance: DagsterInstance, pool: str) -> bool:
    """Whether `hold_pool` holds it."""
    return _remembered(instance, pool) is not None


def _remembered(instance: DagsterInstance, pool: str) -> dict[str, int | None] | None:
    key = _KEY.format(pool=pool)
    stored = instance.daemon_cursor_storage.get_cursor_values({key}).get(key)
    found: dict[str, int | None] | None = None if stored is None else json.loads(stored)
    return found


def _remember(instance: DagsterInstance, pool: str, value: dict[str, int | None] | None) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_KEY.format(pool=pool): json.dumps(value)})
