"""The command ``medkg``. Each subcommand has a module of its own here, which is loaded when it is asked for."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from medkg.errors import MedkgError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    The exit status is 0, 1 if something is not as it should be, 2 if it could not be done, 64 if a configuration cannot
    be used.
    """
    parser = argparse.ArgumentParser(prog="medkg", description="Tools beside gpu-server and its clients.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add(commands)
    options = parser.parse_args(arguments)
    try:
        status = options.run(options)
    except MedkgError as error:
        sys.stderr.write(f"medkg: {error}\n")
        return 2
    return int(status)


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from medkg.cli import certs, config  # noqa: PLC0415 (loads the extension)

    certs.add(commands)
    config.add(commands)
