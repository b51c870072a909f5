"""What README.md tells the reader to type works: targets, snippets, extras, files, the server's command line."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import medkg

from . import readme
from .conftest import until
from .readme import ADDRESS, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from medkg.local import LocalServer

    from .conftest import Command

MAKE = sorted({command for command in readme.commands() if command.startswith("make ")})
SNIPPETS = readme.blocks("python")


def test_the_readme_has_what_is_tested_here() -> None:
    assert {"make demo", "make test", "make dev"} <= set(MAKE)
    assert len(SNIPPETS) >= 2
    assert any(ADDRESS in snippet.text for snippet in SNIPPETS)
    assert any("Definitions(" in snippet.text for snippet in SNIPPETS)


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target_and_lists_it(command: str) -> None:
    subprocess.run(["bash", "-euc", f"{command} --dry-run"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    target = command.split()[1]
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if target != "wheel":  # a part of `make setup`
        assert re.search(rf"^ +make {target} ", listed, re.MULTILINE), listed


def test_ci_runs_the_same_targets() -> None:
    ran = re.findall(r"^make (\w+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert ran == ["lint", "test"]


@pytest.mark.parametrize("link", sorted(set(readme.links())))
def test_linked_files_are_there(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_pictures_of_the_docs_are_there_and_all_are_shown() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for link in re.findall(r"!\[[^]]+\]\(([^):]+)\)", page.read_text("utf-8"))
    }
    assert {path for path in shown if not path.exists()} == set()
    assert set((ROOT / "docs" / "images").iterdir()) <= shown


def test_the_extras_are_the_wheels() -> None:
    from importlib.metadata import metadata

    named = {
        extra
        for found in re.findall(r"\[([a-z,]+)\]['\" ]", "\n".join(readme.commands()))
        for extra in found.split(",")
    }
    assert named
    assert named <= set(metadata("medkg").get_all("Provides-Extra"))


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_the_snippet_runs(snippet: readme.Block, server: LocalServer, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "documents", tmp_path / "documents")
    file = tmp_path / "definitions.py"
    file.write_text(snippet.text.replace(ADDRESS, server.address), "utf-8")
    command = [sys.executable, str(file)]
    if "Definitions(" in snippet.text:  # Dagster loads it, as `dagster dev -f definitions.py` would
        command = [sys.executable, "-W", "ignore", "-m", "dagster", "definitions", "validate", "-f", str(file)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MEDKG_ADDRESS": server.address},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "rerank(" in snippet.text:
        assert re.fullmatch(r"kidney: score \d+\.\d+, on cpu\n", done.stdout)


def test_the_servers_command_line_starts_it(start: Callable[..., Command], reranker_dir: Path, tmp_path: Path) -> None:
    (block,) = (block for block in readme.blocks("sh") if "build/gpu-server " in block.text)
    # A clone of its own, so that the vectors in build/ are nobody else's.
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "gpu-server").symlink_to(ROOT / "build" / "gpu-server")
    (tmp_path / "gpu-server" / "models").mkdir(parents=True)
    (tmp_path / "gpu-server" / "models" / reranker_dir.name).symlink_to(reranker_dir)
    text = block.text.replace("build/gpu-server ", "exec build/gpu-server ")
    running = start(text, tmp_path, MEDKG_LISTEN="127.0.0.1:0")
    said = running.wait_for('"listening on ')
    (port,) = re.findall(r'"listening on 127\.0\.0\.1:(\d+)"', said)
    with medkg.connect(address=f"http://127.0.0.1:{port}", tenant="readme", timeout=120) as services:
        assert services.gpu.status().active_device == "cpu"
        until(lambda: running.said.count('"model ready"') == 2)
        assert services.embedding.embed(["Aspirin."]).model == "all-MiniLM-L6-v2"
        assert services.vector.collections() == []
    running.process.send_signal(signal.SIGTERM)
    assert running.result() == 0
