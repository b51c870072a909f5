"""Switches for moving a pipeline step by step: read once from the environment, then handed on as a value."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from medkg.contracts.model import Contract
from medkg.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

USE_GPU_SERVICES: Final = "MEDKG_USE_GPU_SERVICES"
"""Environment variable: whether texts are embedded by gpu-server instead of the project's older stage. Default: yes."""
TYPED_STAGE: Final = "MEDKG_TYPED_STAGE"
"""Environment variable: whether stages hand on typed results instead of plain dicts. Default: no."""
_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class FeatureFlags(Contract):
    """What is switched on.

    Attributes:
        use_gpu_services: gpu-server embeds; otherwise the project's older stage does.
        typed_stage: The typed result is handed on; otherwise the older shape is.
    """

    use_gpu_services: bool = True
    typed_stage: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> FeatureFlags:
        """Read the two variables; one that is unset or empty means the default.

        Raises:
            ConfigError: A variable says neither yes nor no.
        """
        given = os.environ if environment is None else environment
        values: dict[str, bool] = {}
        for field, variable in (("use_gpu_services", USE_GPU_SERVICES), ("typed_stage", TYPED_STAGE)):
            word = given.get(variable, "").strip().lower()
            if not word:
                continue
            if word not in _WORDS:
                message = f"{variable} is neither yes nor no; write one of {', '.join(_WORDS)}"
                raise ConfigError(message, field_violations=[(variable, message)])
            values[field] = _WORDS[word]
        return cls(**values)
