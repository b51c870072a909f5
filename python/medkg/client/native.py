"""The extension ``medkg._core``: the only module that imports it."""

from __future__ import annotations

import medkg._core as native

__all__ = ["native", "version"]

version: str = native.__version__
