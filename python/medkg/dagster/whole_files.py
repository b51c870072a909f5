"""Files that are there whole or not at all, on any path that fsspec knows.

On a local disk a file is written under another name in the same folder, synced, and renamed: after a crash there is the
old file or the new one. An object store has no rename, and needs none: there an object is put in one request (or one
multipart upload, completed at its end), and readers see nothing of it before.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from upath import UPath

_LOCAL: Final = {"", "file", "local"}


def write_whole(path: UPath, content: bytes | memoryview) -> None:
    """Puts a file where it belongs, over one that is there; folders above it are made.

    Args:
        path: Where to.
        content: All of it.

    Raises:
        OSError: It cannot be written; what was there before is there still.
    """
    if not is_local(path):
        path.fs.pipe_file(path.path, bytes(content))
        return
    target = Path(path.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_local(path: UPath) -> bool:
    """Whether it is a file of this machine, and no object of a store."""
    return path.protocol in _LOCAL


def _umask() -> int:
    """Permissions that new files are made without; mkstemp grants them to nobody but the owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
