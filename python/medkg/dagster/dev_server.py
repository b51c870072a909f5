"""The gpu-server that a project in development starts itself: the real binary, on the CPU.

It is started when the project's definitions are loaded, once for a tree of processes: run workers and steps load them
too, and find its address in their environment. It ends with the process that started it, however that ends: a shell
waits for the end of a pipe that only this process holds open. (Where a code location is loaded anew, the new server's
collections wait until the old one has let go of the folder.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from medkg.local import LocalServer

ADDRESS_VARIABLE: Final = "MEDKG_DEV_SERVER"
"""Where the processes below find the server's address."""
_MODELS: Final = ("MEDKG_EMBEDDING_MODELS", "MEDKG_RERANKING_MODELS")
_END_WITH_OWNER: Final = 'trap "" INT TERM HUP; read -r _; kill "$1"'

_pipes: Final[list[subprocess.Popen[bytes]]] = []


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
    server = LocalServer(
        binary,
        embedding_models=models["MEDKG_EMBEDDING_MODELS"],
        reranking_models=models["MEDKG_RERANKING_MODELS"],
        data_dir=os.environ.get("MEDKG_DATA_DIR") or home / "vectors",
        log_path=home / "gpu-server.log",
        wait=False,
    ).start()
    _pipes.append(
        subprocess.Popen(
            ["/bin/sh", "-c", _END_WITH_OWNER, "sh", str(server.pid)],
            stdin=subprocess.PIPE,  # closed by the end of this process; children that are exec'd do not get it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    os.environ[ADDRESS_VARIABLE] = server.address
    return server.address, []


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
