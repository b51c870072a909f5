"""The gpu-server that a project in development starts itself: the real binary, on the CPU.

It is started when the project's definitions are loaded, once for a tree of processes: run workers and steps load them
too, and find its address in their environment. A code location that is loaded anew is a new process beside the old one,
which stays until its runs are done; both use one server, found by a file beside the Dagster instance. Each holds a
shared lock on that file, and the server ends when the last of them has ended, however that was (`dev_server_end.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from medkg.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS_VARIABLE: Final = "MEDKG_DEV_SERVER"
"""Where the processes below find the server's address."""
_MODELS: Final = ("MEDKG_EMBEDDING_MODELS", "MEDKG_RERANKING_MODELS")
_END: Final = Path(__file__).with_name("dev_server_end.py")
_CONNECT_SECONDS: Final = 5.0

_held: Final[list[Any]] = []
"""Files with this process's locks, and processes that nobody waits for: they stay until this process ends."""


def dev_server_address() -> tuple[str, list[tuple[str, str]]]:
    """The address of the server of this tree of processes, which is started if there is none yet.

    The binary is `MEDKG_GPU_SERVER`, or `gpu-server` on the path; models and folder are said as gpu-server's own
    variables say them: `MEDKG_EMBEDDING_MODELS`, `MEDKG_RERANKING_MODELS` (`NAME=FOLDER,...`) and `MEDKG_DATA_DIR`.
    Models load while the project does: nothing waits for them here.

    Returns:
        The address, and what is missing for a start, as (place, problem); the address is empty then.

    Raises:
        LocalServerError: It did not start.
    """
    if address := os.environ.get(ADDRESS_VARIABLE):
        return address, []
    binary = os.environ.get("MEDKG_GPU_SERVER") or shutil.which("gpu-server")
    models = {name: _models(name) for name in _MODELS}
    problems = []
    if binary is None or not Path(binary).exists():
        problems.append(("MEDKG_GPU_SERVER", "names no gpu-server to start, and none is on the path"))
    problems += [(name, "names no model as NAME=FOLDER") for name, found in models.items() if not found]
    if binary is None or problems:
        return "", problems
    home = _home()
    options = {
        "binary": str(binary),
        "embedding_models": models["MEDKG_EMBEDDING_MODELS"],
        "reranking_models": models["MEDKG_RERANKING_MODELS"],
        "data_dir": os.environ.get("MEDKG_DATA_DIR") or str(home / "vectors"),
    }
    with _turn(home):
        address = _joined(home, options) or _started(home, options)
    os.environ[ADDRESS_VARIABLE] = address
    return address, []


@contextmanager
def _turn(home: Path) -> Iterator[None]:
    """One process at a time looks for a server and starts one."""
    with (home / "gpu-server.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _joined(home: Path, options: dict[str, Any]) -> str | None:
    """The address of a server with these options that another process has started here; this process holds it too."""
    for path in home.glob("gpu-server-*.json"):
        try:
            users = path.open()
        except FileNotFoundError:
            continue
        if _is_left_over(users):
            path.unlink(missing_ok=True)
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while it is being ended
        if path.exists():
            known = json.load(users)
            if known["options"] == options and _answers(known["address"]):
                _held.append(users)
                return str(known["address"])
        users.close()
    return None


def _started(home: Path, options: dict[str, Any]) -> str:
    server = LocalServer(**options, log_path=home / "gpu-server.log", wait=False).start()
    path = home / f"gpu-server-{uuid4()}.json"
    new = path.with_suffix(".new")
    users = new.open("w")
    json.dump({"address": server.address, "options": options}, users)
    users.flush()
    fcntl.flock(users, fcntl.LOCK_SH)
    new.rename(path)
    end = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_END), str(server.pid), str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal is not meant for it
    )
    _held.extend([users, server, end])
    return server.address


def _is_left_over(users: IO[str]) -> bool:
    """Whether nobody holds the file and nobody waits for its end: the machine went down."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(address: str) -> bool:
    """Whether something listens there."""
    url = urlsplit(address)
    try:
        with socket.create_connection((url.hostname or "", url.port or 0), _CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _models(variable: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in os.environ.get(variable, "").split(",") if part.strip()]
    return {name.strip(): folder.strip() for name, _, folder in pairs}


def _home() -> Path:
    """Where the log is, and the vectors: beside the Dagster instance that has the assets made of them."""
    instance = os.environ.get("DAGSTER_HOME")
    if not instance:
        return Path(tempfile.mkdtemp(prefix="medkg-dev-"))
    home = Path(instance) / "medkg"
    home.mkdir(parents=True, exist_ok=True)
    return home
