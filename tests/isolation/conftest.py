"""The built wheel, and clean virtual environments that have it installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXTRAS = ("dagster", "contracts", "chunking", "gateway", "otel", "lance", "milvus", "arrow")


@dataclass(frozen=True)
class CleanEnvironment:
    """A virtual environment with nothing in it but what was asked for."""

    python: Path
    site: Path

    def run(self, code: str, *arguments: str, **environment: str) -> Any:
        """Run a snippet away from the repository; what it prints as its last line is JSON and comes back."""
        # -I would hide PYTHONPATH, which the tests of the checks need; `cwd` keeps the repository out of reach.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MEDKG_", "DAGSTER_"))}
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", code, *arguments],
            cwd=self.python.parents[1],
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel that `make wheel` built."""
    named = os.environ.get("MEDKG_WHEEL")
    found = [Path(named)] if named else sorted((ROOT / "dist").glob("medkg-*.whl"))
    if len(found) != 1 or not found[0].exists():
        pytest.fail(f"one wheel is expected in dist/, found {[path.name for path in found]}: run `make wheel`")
    return found[0]


@pytest.fixture(scope="session")
def uv() -> str:
    """The installer that `make setup` uses; in its cache is what dev.lock names."""
    cache = os.environ.get("MEDKG_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medkg"
    path = Path(cache) / "tools" / "bin" / "uv"
    if not path.exists():
        pytest.fail(f"{path} is not there: run `make setup`")
    return str(path)


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of dev.lock without its hashes, so that what is in the installer's cache is what is installed."""
    lock = (ROOT / "ops" / "requirements" / "dev.lock").read_text("utf-8")
    pinned = re.findall(r"^([a-z0-9][\w.\[\]-]*==[^\\\n]+?) *\\?$", lock, re.MULTILINE)
    assert len(pinned) > 50
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    path.write_text("\n".join(pinned), "utf-8")
    return path


@pytest.fixture(scope="session")
def install(uv: str, wheel: Path, constraints: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Makes a clean virtual environment with the wheel and the extras that are named."""

    def make(*extras: str) -> CleanEnvironment:
        folder = tmp_path_factory.mktemp("clean") / "venv"
        environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
        if index := environment.get("PIP_INDEX_URL"):
            environment.setdefault("UV_DEFAULT_INDEX", index)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], env=environment, check=True)
        python = folder / "bin" / "python"
        wanted = f"medkg[{','.join(extras)}] @ {wheel.resolve().as_uri()}" if extras else str(wheel)
        command = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", constraints, wanted]
        done = subprocess.run([*command, "--offline"], env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:  # the cache was cleared since the set-up
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (site,) = folder.glob("lib/python3*/site-packages")
        return CleanEnvironment(python, site)

    return make


@pytest.fixture(scope="session")
def with_extras(install: Callable[..., CleanEnvironment]) -> CleanEnvironment:
    """`pip install medkg[dagster,contracts,chunking,gateway,otel,lance,milvus,arrow]`."""
    return install(*EXTRAS)


@pytest.fixture(scope="session")
def without_extras(install: Callable[..., CleanEnvironment]) -> CleanEnvironment:
    """`pip install medkg`."""
    return install()
