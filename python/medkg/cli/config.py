"""``medkg config``: what a client would use here, and where each part of it was said."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkg.client import connect
from medkg.client.native import native
from medkg.config import ClientConfig, variables
from medkg.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["add"]

REFUSED = 64
"""As gpu-server exits where its configuration cannot be used (EX_USAGE)."""

_HEADER = ("OPTION", "VALUE", "FROM")
_HIDDEN = "(hidden)"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    config = commands.add_parser("config", help="look at the configuration of clients", description="Look at it.")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    help_ = "list every option with its value and where that comes from, or every problem (exit status 64)"
    check = actions.add_parser("check", help=help_, description=f"{help_.capitalize()}. Nothing is dialled.")
    check.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="TOML or YAML; by default the one that MEDKG_CONFIG names"
    )
    check.add_argument("--no-env", action="store_true", help="leave the environment out")
    check.add_argument("--json", action="store_true", help="as JSON")
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    try:
        config, effective, origins = native.load_config(options.file, variables(env=not options.no_env), ClientConfig())
        with connect(config) as services:
            services.reload(config)  # reads the TLS files, which making a client does not
    except ConfigError as error:
        if options.json:
            problems = [{"place": place, "problem": problem} for place, problem in error.field_violations]
            _say(json.dumps({"good": False, "problems": problems}, indent=2))
        else:
            sys.stderr.write(f"medkg: {error}\n")
        return REFUSED
    rows = [(name, value, origins.get(name, "default")) for name, value in _flat(effective)]
    if options.json:
        told = [{"option": name, "value": value, "from": origin} for name, value, origin in rows]
        _say(json.dumps({"good": True, "options": told}, indent=2))
        return 0
    lines = [_HEADER, *((name, _text(value), origin) for name, value, origin in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _flat(config: object, group: str = "") -> Iterator[tuple[str, object]]:
    """Each option with its value, as JSON has it; a field that does not show itself is not shown."""
    if not is_dataclass(config):
        return
    for field in fields(config):
        name, value = f"{group}{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            yield from _flat(value, f"{name}.")
        elif value is None or field.repr:
            yield name, str(value) if isinstance(value, Path) else value
        else:
            yield name, _HIDDEN


def _text(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
