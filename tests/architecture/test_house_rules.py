"""The rules of the code hold, and each can fail: a small tree that breaks it is caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import house_rules
from .test_directions import workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Rule = Callable[[Path], Iterator[str]]

RULES = [
    house_rules.names_say_something,
    house_rules.files_are_short,
    house_rules.modules_say_what_they_are,
    house_rules.unsafe_is_named,
    house_rules.nothing_is_simulated,
]


@pytest.mark.requirement("observability 4.2")
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_holds(rule: Rule, repository: Path) -> None:
    """Judge the repository itself."""
    violations = sorted(set(rule(repository)))
    assert not violations, "\n" + "\n".join(violations)


BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (house_rules.names_say_something, {"python/medkg/utils/a.py": ""}, "python/medkg/utils/a.py: `utils`"),
    (house_rules.names_say_something, {"gpu-server/src/manager.rs": ""}, "gpu-server/src/manager.rs: `manager`"),
    (house_rules.files_are_short, {"rust/x/src/a.rs": "//! x\n" * 501}, "rust/x/src/a.rs: 501 lines"),
    (
        house_rules.modules_say_what_they_are,
        {**workspace(), "gpu-server/src/policy.rs": "use std::fmt;\n"},
        "gpu-server/src/policy.rs: must open with `//!`",
    ),
    (
        house_rules.modules_say_what_they_are,
        {**workspace(), "python/medkg/a.py": "A = 1\n"},
        "python/medkg/a.py: must open with a docstring",
    ),
    (
        house_rules.unsafe_is_named,
        {**workspace(medkg_tls=""), "rust/medkg-tls/src/lib.rs": "//! Not // #![forbid(unsafe_code)]\n"},
        "rust/medkg-tls/src/lib.rs: must say #![forbid(unsafe_code)]",
    ),
    (
        house_rules.unsafe_is_named,
        {
            **workspace(),
            "gpu-server/src/device/driver.rs": "unsafe { x() }\n",
            "gpu-server/src/index/view.rs": "// unsafe\nfn f() { unsafe { x() } }\n",
        },
        "gpu-server/src/index/view.rs:2 says unsafe",
    ),
    (
        house_rules.unsafe_is_named,
        {**workspace(medkg_py=""), "rust/medkg-py/src/arrays.rs": "#![allow(unsafe_code)]\n"},
        "rust/medkg-py/src/arrays.rs:1 says unsafe: no file",
    ),
    (
        house_rules.nothing_is_simulated,
        {"rust/x/src/a.rs": "//! A mock is a bird.\npub struct MockBreaker;\n"},
        "rust/x/src/a.rs:2 has 'struct MockBreaker'",
    ),
    (
        house_rules.nothing_is_simulated,
        {"python/medkg/a.py": "class MinerUSimulator: ...\n"},
        "python/medkg/a.py:1 has 'MinerUSimulator'",
    ),
    (
        house_rules.nothing_is_simulated,
        {"tests/a.py": "from unittest import mock\n"},
        "tests/a.py:1 has 'unittest.mock'",
    ),
]


@pytest.mark.parametrize(
    ("rule", "tree", "expected"), BROKEN, ids=[f"{b[0].__name__}-{i}" for i, b in enumerate(BROKEN)]
)
def test_a_tree_that_breaks_the_rule_is_caught(
    rule: Rule, tree: dict[str, str], expected: str, make_tree: Callable[[dict[str, str]], Path]
) -> None:
    """Judge a tree with one mistake in it: the violation says what and where, and nothing else is blamed."""
    violations = list(rule(make_tree(tree)))
    assert [violation for violation in violations if expected in violation] == violations[:1], violations
    assert violations


def test_what_is_allowed_passes(make_tree: Callable[[dict[str, str]], Path]) -> None:
    """Judge a tree that uses every permission."""
    tree = workspace(medkg_tls="")
    tree["gpu-server/src/device/driver.rs"] = "//! CUDA.\n#![allow(unsafe_code)]\nfn f() { unsafe { x() } }\n"
    tree["rust/medkg-tls/src/gen/long.rs"] = "x\n" * 900
    tree["python/medkg/__init__.py"] = ""
    root = make_tree(tree)
    for rule in RULES:
        assert list(rule(root)) == [], rule.__name__
