"""An I/O manager that gives what a test says is stored, so that an asset or a check can be run alone."""

from __future__ import annotations

from typing import Any

import dagster as dg


class Stored(dg.IOManager):
    """Gives what a test says is stored, and keeps nothing."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Keep nothing."""

    def load_input(self, context: dg.InputContext) -> object:
        """The value of the asset of that name."""
        return self._values[context.asset_key.path[-1]]
