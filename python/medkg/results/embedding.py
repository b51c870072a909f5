"""What turning texts into vectors returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Literal

    import numpy as np
    import numpy.typing as npt

    from medkg.results.usage import Usage


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingResult:
    """One vector per text.

    Attributes:
        vectors: Row i belongs to text i. Not a copy: it owns the answer's memory. Shape ``(n, d)`` and, by ``dtype``,
            float32; float16; uint16 for ``"bfloat16"``, which numpy does not have: the bits of each value; int8, from
            -127 to 127: multiples of the row's scale. For ``"binary"`` shape ``(n, ceil(d / 8))``, uint8: one bit per
            element, 1 where it is above 0, as ``numpy.packbits`` has it.
        token_counts: Shape ``(n,)``, uint32: tokens of each text, special tokens included.
        truncated: Indices of the texts that were shortened, ascending.
        model: The model that answered.
        model_digest: Its digest.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
        dtype: The type of the elements.
        dimension: d, the elements of one vector.
        scales: For ``"int8"`` shape ``(n,)``, float32, above 0: value = scale * element; else None.
        degraded: Why it is not the answer that was asked for, where a :class:`medkg.FallbackConfig` stood in;
            None: it is.
    """

    vectors: (
        npt.NDArray[np.float32]
        | npt.NDArray[np.float16]
        | npt.NDArray[np.uint16]
        | npt.NDArray[np.int8]
        | npt.NDArray[np.uint8]
    )
    token_counts: npt.NDArray[np.uint32]
    truncated: list[int]
    model: str
    model_digest: str
    usage: Usage
    request_id: str
    trace_id: str
    dtype: Literal["float32", "float16", "bfloat16", "int8", "binary"]
    dimension: int
    scales: npt.NDArray[np.float32] | None
    degraded: str | None = None

    def as_float32(self) -> npt.NDArray[np.float32]:
        """The vectors as float32 of shape ``(n, d)``; bits become 1 and -1.

        For ``"float32"`` this is ``vectors`` itself, else a new array.
        """
        import numpy as np  # noqa: PLC0415 - `import medkg` must not load numpy

        vectors: npt.NDArray[Any] = self.vectors
        values: npt.NDArray[np.float32]
        if self.dtype == "bfloat16":
            values = (vectors.astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "binary":
            bits = np.unpackbits(vectors, axis=1, count=self.dimension)
            values = np.where(bits == 1, np.float32(1), np.float32(-1))
        else:
            values = vectors.astype(np.float32, copy=False)
        return values if self.scales is None else values * self.scales[:, None]

    def to_arrow(self) -> Any:
        """The vectors as a ``pyarrow.FixedSizeListArray`` of n lists, over the memory of ``vectors``, not a copy.

        Elements are those of ``vectors``: float, halffloat for ``"float16"``; Arrow has no bfloat16 either, so uint16
        with the bits; int8 without the ``scales``, which stay beside it; uint8 of packed bits for ``"binary"``. For
        values whatever the dtype, take ``as_float32()`` first.

        Raises:
            ModuleNotFoundError: pyarrow is not there; the extra ``medkg[arrow]`` brings it.
        """
        from medkg.vectors import arrow  # noqa: PLC0415 - `import medkg` must not load numpy

        return arrow.load().rows(self.vectors)

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """The vectors for whoever speaks Arrow's PyCapsule interface, as :meth:`to_arrow` gives them."""
        capsules: tuple[object, object] = self.to_arrow().__arrow_c_array__(requested_schema)
        return capsules


@dataclass(frozen=True, slots=True, eq=False)
class SparseEmbeddingResult:
    """One sparse vector per text, as compressed sparse rows.

    With scipy: ``scipy.sparse.csr_array((r.values, r.indices, r.indptr), shape=(len(r.indptr) - 1, r.dimension))``.

    Attributes:
        indptr: Shape ``(n + 1,)``, int64: row i lies at ``indptr[i]:indptr[i + 1]`` of the two arrays below.
        indices: Shape ``(terms,)``, int32: token ids, ascending within a row.
        values: Shape ``(terms,)``, float32: the weight of each, above 0.
        dimension: Elements of one vector: words of the model's vocabulary.
        token_counts: Shape ``(n,)``, uint32: tokens of each text, special tokens included.
        truncated: Indices of the texts that were shortened, ascending.
        model: The model that answered.
        model_digest: Its digest.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
        degraded: As :attr:`EmbeddingResult.degraded`.
    """

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    dimension: int
    token_counts: npt.NDArray[np.uint32]
    truncated: list[int]
    model: str
    model_digest: str
    usage: Usage
    request_id: str
    trace_id: str
    degraded: str | None = None

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The token ids and weights of text ``index``, as views; a negative one counts from the end.

        Raises:
            IndexError: There is no such text.
        """
        rows = len(self.indptr) - 1
        place = index + rows if index < 0 else index
        if not 0 <= place < rows:
            message = f"row {index} of {rows}"
            raise IndexError(message)
        part = slice(self.indptr[place], self.indptr[place + 1])
        return self.indices[part], self.values[part]
