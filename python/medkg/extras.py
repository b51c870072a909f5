"""What is said where a package of an extra is missing: which one, and the command that installs it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["packages_of"]


@contextmanager
def packages_of(extra: str, *packages: str, user: str) -> Iterator[None]:
    """A block that imports packages of an extra.

    Args:
        extra: Its name, such as ``"gateway"``.
        packages: The packages by their import names; another one that is missing is a fault of its own.
        user: What needs them, and how, as the opening of a sentence: ``"medkg.gateway needs"``.

    Raises:
        ModuleNotFoundError: One of them is not installed; the message names it and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        message = f"{user} {missing}, which is not installed: pip install 'medkg[{extra}]'"
        raise ModuleNotFoundError(message, name=missing) from error
