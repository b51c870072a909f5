"""Importing medkg costs next to nothing, and every name is where it should be."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import medkg

if TYPE_CHECKING:
    from collections.abc import Callable

HEAVY = {"numpy", "pydantic", "dagster", "docling", "docling_core", "torch", "transformers", "asyncio", "grpc"}


@pytest.mark.requirement("isolation 5.1")
def test_importing_medkg_loads_nothing_of_weight(script: Callable[..., Any]) -> None:
    done = script("import sys, medkg; print(*sys.modules)").finish()
    loaded = {name.partition(".")[0] for name in done.out.split()}
    assert not loaded & HEAVY
    assert "medkg._core" not in done.out.split(), "the extension is loaded by the first name that needs it"


@pytest.mark.requirement("isolation 5.1")
def test_making_a_client_loads_no_numpy_and_starts_no_thread(script: Callable[..., Any]) -> None:
    done = script("""
        import sys, os, medkg
        medkg.connect(address="http://127.0.0.1:1", tenant="demo")
        print(len(os.listdir("/proc/self/task")), *sys.modules)
    """).finish()
    threads, *loaded = done.out.split()
    assert int(threads) == 1
    assert not {name.partition(".")[0] for name in loaded} & (HEAVY - {"asyncio"})


def test_every_public_name_can_be_had() -> None:
    for name in medkg.__all__:
        assert getattr(medkg, name) is not None
    assert set(medkg.__all__) <= set(dir(medkg))
    with pytest.raises(AttributeError, match="no_such_name"):
        medkg.no_such_name  # noqa: B018


def test_the_names_that_type_checkers_see_are_the_names_that_there_are() -> None:
    tree = ast.parse(Path(medkg.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(seen) == set(medkg.__all__)
    for name, (module, original) in seen.items():
        assert getattr(medkg, name) is getattr(importlib.import_module(str(module)), original)
    public = {
        name
        for home in ("errors", "config", "results", "call_context", "client", "aio")
        for name in importlib.import_module(f"medkg.{home}").__all__
    }
    assert set(medkg.__all__) == public | {"__version__"}
