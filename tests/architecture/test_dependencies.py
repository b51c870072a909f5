"""Licences, bans and sources of every crate by deny.toml, from `cargo metadata`: needs no cargo-deny."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def allowed(expression: str | None, licences: set[str]) -> bool:
    """Judge an SPDX expression; crates of old write `MIT/Apache-2.0` for OR."""
    if not expression:
        return False
    tokens = re.findall(r"\(|\)|[\w.+-]+(?: WITH [\w.-]+)?", expression.replace("/", " OR "))

    def disjunction() -> bool:
        result = conjunction()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = conjunction() or result
        return result

    def conjunction() -> bool:
        result = licence()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = licence() and result
        return result

    def licence() -> bool:
        name = tokens.pop(0)
        if name != "(":
            return name in licences
        result = disjunction()
        tokens.pop(0)
        return result

    return disjunction() and not tokens


def violations(metadata: dict[str, Any], deny: dict[str, Any]) -> Iterator[str]:
    """Judge the crates that are used: licence, source, and who may have which."""
    packages = {package["id"]: package for package in metadata["packages"]}
    licences = set(deny["licenses"]["allow"])
    needed_by: dict[str, set[str]] = {}
    for node in metadata["resolve"]["nodes"]:
        package = packages[node["id"]]
        where = f"{package['name']} {package['version']}"
        if not allowed(package["license"], licences):
            yield f"{where}: licence {package['license']!r} is not in the allow-list of deny.toml"
        # `None` is our own.
        if package["source"] is not None and not re.fullmatch(r"registry\+\S+/crates\.io-index", package["source"]):
            yield f"{where}: comes from {package['source']}; only crates.io is allowed"
        for dependency in node["dependencies"]:
            needed_by.setdefault(packages[dependency]["name"], set()).add(package["name"])
    for ban in deny["bans"]["deny"]:
        for user in sorted(needed_by.get(ban["crate"], set()) - set(ban.get("wrappers", []))):
            yield f"{user} depends on {ban['crate']}: {ban['reason']}"


def test_every_crate_is_allowed(repository: Path) -> None:
    """Judge the workspace as it is locked."""
    host = re.search(r"^host: (\S+)$", _output("rustc", "-vV", cwd=repository), re.MULTILINE)
    assert host
    command = ["cargo", "metadata", "--format-version", "1", "--offline", "--filter-platform", host[1]]
    metadata = json.loads(_output(*command, cwd=repository))
    deny = tomllib.loads((repository / "deny.toml").read_text(encoding="utf-8"))
    assert len(metadata["resolve"]["nodes"]) > 100, "the whole graph is judged"
    found = sorted(violations(metadata, deny))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("GPL-3.0", False),
        (None, False),
        ("MIT OR GPL-3.0", True),
        ("MIT/Apache-2.0", True),
        ("MIT AND GPL-3.0", False),
        ("(MIT OR GPL-3.0) AND ISC", True),
        ("GPL-3.0 OR MIT AND ISC", True),
        ("(GPL-3.0 OR MIT) AND LGPL-3.0", False),
        ("Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_expressions_are_read_as_spdx(expression: str | None, expected: bool) -> None:  # noqa: FBT001
    """Judge expressions: AND binds tighter than OR, an exception makes another licence."""
    assert allowed(expression, {"MIT", "Apache-2.0", "ISC"}) is expected


def test_each_violation_is_caught() -> None:
    """Judge a graph that breaks every rule once."""
    packages = [
        {"id": "a", "name": "medkg-client", "version": "1", "license": "Apache-2.0", "source": None},
        {"id": "b", "name": "tch", "version": "1", "license": "SSPL-1.0", "source": "git+https://example.org/tch"},
    ]
    nodes = [{"id": "a", "dependencies": ["b"]}, {"id": "b", "dependencies": []}]
    deny = {
        "licenses": {"allow": ["Apache-2.0"]},
        "bans": {"deny": [{"crate": "tch", "wrappers": ["gpu-server"], "reason": "only gpu-server"}]},
    }
    found = list(violations({"packages": packages, "resolve": {"nodes": nodes}}, deny))
    assert [text.split(":")[0] for text in found] == ["tch 1", "tch 1", "medkg-client depends on tch"]
    packages[0]["name"] = "gpu-server"
    assert len(list(violations({"packages": packages, "resolve": {"nodes": nodes}}, deny))) == len(found) - 1


def _output(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout
