"""What is told when a configuration file that is followed has changed. The Rust half calls this.

It is told in the log ``medkg`` and nowhere else: no call fails because a file is broken. Fields are named, never their
values.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.config import ClientConfig
    from medkg.errors import ConfigError

__all__ = ["changed", "refused"]

_log = logging.getLogger("medkg")


def changed(path: Path, old: ClientConfig, new: ClientConfig) -> None:
    """Calls use what the file says now."""
    names = [field.name for field in fields(new) if getattr(old, field.name) != getattr(new, field.name)]
    _log.info("%s has changed and is used: %s", path, ", ".join(names) or "nothing that matters is different")


def refused(path: Path, error: ConfigError) -> None:
    """The file cannot be used; the configuration before stays in use."""
    _log.error("%s has changed and cannot be used; the configuration before stays in use. %s", path, error)
