"""What goes into an embedding stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from medkg.contracts.model import Contract

MAX_TEXT = 1 << 20
"""Characters of the longest text. The server's limit is as many bytes: it refuses what is still too long."""

Name = Annotated[str, Field(min_length=1)]
Identifier = Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
"""1 to 128 printable ASCII characters without spaces, as a call's ``request_id``."""


def _as_tuple(value: Any) -> Any:
    """Takes over a list; leaves anything else, a lone string above all, to be refused."""
    return tuple(value) if isinstance(value, list) else value


class EmbeddingOptions(Contract):
    """How texts become vectors. None is the server's default; :meth:`medkg.EmbeddingClient.embed` says what each does.

    Attributes:
        model: Name of the model.
        dtype: Element type of the vectors.
        prompt_name: A prompt of the model; not together with ``instruction``.
        instruction: Put before each text.
        dimensions: Keep the first so many elements.
        truncation: What becomes of texts that are too long for the model.
        timeout: Seconds that the whole call may take, above 0.
    """

    model: Name | None = None
    dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"] | None = None
    prompt_name: Name | None = None
    instruction: Annotated[str, Field(max_length=4096)] | None = None
    dimensions: Annotated[int, Field(gt=0)] | None = None
    truncation: Literal["right", "left", "refuse"] | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt_name is not None and self.instruction is not None:
            message = "prompt_name and instruction exclude each other; give one of them"
            raise ValueError(message)
        return self


class EmbeddingRequest(Contract):
    """Texts to turn into vectors.

    Attributes:
        texts: At least one; each 1 byte to 1 MiB of UTF-8. A list is taken over as a tuple.
        ids: One for each text, unique, e.g. the chunks' ids; empty: the texts have none.
        tenant: For whom; None means the client's tenant.
        correlation_id: Names the request in logs, on the server too, where it is the call's ``x-request-id``.
        options: How.
    """

    texts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_TEXT)], ...],
        Field(min_length=1),
        BeforeValidator(_as_tuple),
    ]
    ids: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple)] = ()
    tenant: Name | None = None
    correlation_id: Identifier = Field(default_factory=lambda: uuid4().hex)
    options: EmbeddingOptions = EmbeddingOptions()

    @model_validator(mode="after")
    def _an_id_for_each(self) -> Self:
        if self.ids and len(self.ids) != len(self.texts):
            message = f"ids: there are {len(self.ids)} for {len(self.texts)} texts; give one for each, or none"
            raise ValueError(message)
        if len(set(self.ids)) != len(self.ids):
            message = "ids: two texts have the same; make them unique"
            raise ValueError(message)
        return self
