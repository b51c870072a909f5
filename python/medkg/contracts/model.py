"""What every contract is: a Pydantic model that is frozen and strict, and that refuses with medkg's own error.

Pydantic's error would print the input, which is a patient's text. So fields and descriptions are taken over, and the
input and the error itself are left behind.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic

from medkg.errors import EmbeddingValidationError


class Contract(pydantic.BaseModel):
    """Base of the contracts. Nothing is converted on the way in, and nothing can be set afterwards."""

    model_config: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        frozen=True, strict=True, extra="forbid", hide_input_in_errors=True
    )

    def __init__(self, /, **fields: Any) -> None:
        """Take the fields by name.

        Raises:
            EmbeddingValidationError: A field is wrong; ``field_violations`` names each, with its index.
        """
        try:
            super().__init__(**fields)
        except pydantic.ValidationError as error:
            refused = _refused(type(self).__name__, error, fields.get("correlation_id"))
        else:
            return
        raise refused  # outside of the handler, so that Pydantic's error is not its context


def _refused(contract: str, error: pydantic.ValidationError, correlation_id: object) -> EmbeddingValidationError:
    wrong = [
        (_place(one["loc"]), one["msg"])
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    message = "; ".join(f"{where}: {what}" if where else what for where, what in wrong)
    return EmbeddingValidationError(
        f"{contract} refused: {message}",
        code="INVALID_ARGUMENT",
        message=message,
        request_id=correlation_id if isinstance(correlation_id, str) else "",
        field_violations=wrong,
        http_status=400,
    )


def _place(location: tuple[int | str, ...]) -> str:
    """A place as the server spells it, e.g. ``texts[3]`` or ``options.dimensions``."""
    place = ""
    for part in location:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place
