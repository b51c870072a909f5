"""What every contract is: a Pydantic model that is frozen and strict, and that refuses with medkg's own error.

Pydantic's error would print the input, which is a patient's text. So fields and descriptions are taken over, and the
input and the error itself are left behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pydantic

from medkg.errors import EmbeddingValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

T = TypeVar("T")


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
        _checked(type(self), lambda: super(Contract, self).__init__(**fields), fields.get("correlation_id"))

    # Contracts in contracts are then checked in one go, and what is wrong with one inside has its whole place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        """As Pydantic's.

        Raises:
            EmbeddingValidationError: As :class:`Contract`.
        """
        return _checked(cls, lambda: super(Contract, cls).model_validate(obj, **how))

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **how: Any) -> Self:
        """As Pydantic's.

        Raises:
            EmbeddingValidationError: As :class:`Contract`.
        """
        return _checked(cls, lambda: super(Contract, cls).model_validate_json(json_data, **how))


def _checked(contract: type, check: Callable[[], T], correlation_id: object = None) -> T:
    try:
        return check()
    except pydantic.ValidationError as error:
        refused = _refused(contract.__name__, error, correlation_id)
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
