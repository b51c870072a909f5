"""What is imported late, and why no fork comes in the middle of it.

Python holds a lock of each module while a thread imports it. A child that is forked meanwhile inherits the lock without
the thread, and waits for ever once it needs the module. So medkg imports late under a lock of its own, for which a fork
waits.
"""

from __future__ import annotations

import logging  # noqa: F401 - see _LOCK
from importlib import import_module
from os import register_at_fork
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load", "load_for_calls"]

FOR_CALLS = (
    "json",
    "medkg.errors",
    "medkg.events",
    "medkg.filters",
    "medkg.reloading",
    "medkg.results",
    "numpy",
)
"""What the Rust half looks up by name."""

# A fork takes the locks that were registered last first, and modules that are imported make loggers: were logging
# imported later, a fork could hold its lock and wait for ours, while the thread with ours waits for logging's.
_LOCK = RLock()
register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def load(name: str) -> ModuleType:
    """A module of medkg's, imported if it was not."""
    with _LOCK:
        return import_module(name)


def load_for_calls() -> None:
    """Import what calls use; called by the Rust half before the first call of a process."""
    for name in FOR_CALLS:
        load(name)
