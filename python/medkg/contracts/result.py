"""What comes out of an embedding stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, InstanceOf, model_validator
from typing_extensions import Self

from medkg.contracts.model import Contract
from medkg.results import EmbeddingResult as Answer
from medkg.results import Usage

if TYPE_CHECKING:
    import numpy.typing as npt

    from medkg.contracts.request import EmbeddingRequest

_ELEMENTS = {"float32": "float32", "float16": "float16", "bfloat16": "uint16", "int8": "int8", "binary": "uint8"}
_MATRIX = 2


def _locked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory, read-only."""
    view: np.ndarray[Any, Any] = array.view()
    view.flags.writeable = False
    return view


Array = Annotated[InstanceOf[np.ndarray], AfterValidator(_locked)]


class EmbeddingResult(Contract):
    """A vector for each text of a request. Equal only to itself, as arrays are not compared by ``==``.

    Attributes:
        vectors: Row i belongs to text i; read-only, over the memory of the answer. Shape and element type by ``dtype``
            are those of ``medkg.EmbeddingResult.vectors``.
        ids: Those of the request.
        dtype: The type of the elements.
        dimension: Elements of one vector.
        model: The model that answered.
        model_digest: Its digest; empty where it is not known.
        correlation_id: That of the request.
        tenant: That of the request.
        token_counts: Shape ``(n,)``, uint32; None where they are not known.
        truncated: Indices of the texts that were shortened, ascending.
        scales: For ``"int8"`` shape ``(n,)``, float32; else None.
        usage: What it cost; None where it is not known.
        trace_id: The call's trace, 32 hex digits; empty where there was none.
        degraded: Why it is not the answer that was asked for; None: it is.
        seconds: That the stage took, waiting included.
    """

    vectors: Array
    ids: tuple[str, ...] = ()
    dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"] = "float32"
    dimension: Annotated[int, Field(gt=0)]
    model: str
    model_digest: str = ""
    correlation_id: str
    tenant: str | None = None
    token_counts: Array | None = None
    truncated: tuple[int, ...] = ()
    scales: Array | None = None
    usage: InstanceOf[Usage] | None = None
    trace_id: str = ""
    degraded: str | None = None
    seconds: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        columns = -(-self.dimension // 8) if self.dtype == "binary" else self.dimension
        if self.vectors.dtype != _ELEMENTS[self.dtype] or self.vectors.ndim != _MATRIX:
            message = f"vectors: {self.vectors.dtype} {self.vectors.shape}, and {self.dtype} is a matrix of it"
            raise ValueError(message)
        if self.vectors.shape[1] != columns:
            message = f"vectors: shape {self.vectors.shape}, but {self.dimension} elements make {columns} columns"
            raise ValueError(message)
        if (self.scales is not None) != (self.dtype == "int8"):
            message = "scales: belong to int8, and only there"
            raise ValueError(message)
        rows = len(self.vectors)
        for name, values in (("ids", self.ids or None), ("token_counts", self.token_counts), ("scales", self.scales)):
            if values is not None and len(values) != rows:
                message = f"{name}: there are {len(values)} for {rows} vectors"
                raise ValueError(message)
        return self

    @classmethod
    def of(cls, request: EmbeddingRequest, answer: Answer, *, seconds: float) -> EmbeddingResult:
        """The client's answer to a request; the arrays share its memory."""
        return cls(
            vectors=answer.vectors,
            ids=request.ids,
            dtype=answer.dtype,
            dimension=answer.dimension,
            model=answer.model,
            model_digest=answer.model_digest,
            correlation_id=request.correlation_id,
            tenant=request.tenant,
            token_counts=answer.token_counts,
            truncated=tuple(answer.truncated),
            scales=answer.scales,
            usage=answer.usage,
            trace_id=answer.trace_id,
            degraded=answer.degraded,
            seconds=seconds,
        )

    def as_answer(self) -> Answer:
        """As the client gave it, for code that takes ``medkg.EmbeddingResult``; the arrays share the memory."""
        counts = np.zeros(len(self), np.uint32) if self.token_counts is None else self.token_counts
        usage = Usage(0, 0, 0.0, 0.0, "", 0, 0) if self.usage is None else self.usage
        return Answer(
            self.vectors,
            counts,
            list(self.truncated),
            self.model,
            self.model_digest,
            usage,
            self.correlation_id,
            self.trace_id,
            self.dtype,
            self.dimension,
            self.scales,
            self.degraded,
        )

    def as_float32(self) -> npt.NDArray[np.float32]:
        """The vectors as float32 of shape ``(n, d)``: ``vectors`` itself, or a new array for any other ``dtype``."""
        return self.as_answer().as_float32()

    def __len__(self) -> int:
        """Vectors."""
        return len(self.vectors)

    def __eq__(self, other: object) -> bool:
        """Equal to itself only."""
        return self is other

    def __hash__(self) -> int:
        """As :meth:`__eq__`."""
        return id(self)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Come out of a pickle as read-only as before."""
        fields = state["__dict__"]
        arrays = {name: _locked(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
        super().__setstate__({**state, "__dict__": {**fields, **arrays}})
