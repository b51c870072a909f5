"""What calls return: plain, frozen values. Arrays are numpy arrays that own the memory the answer was written to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy as np
    import numpy.typing as npt

__all__ = [
    "CollectionInfo",
    "CollectionStatistics",
    "DeviceInfo",
    "EmbeddingResult",
    "FetchResult",
    "GpuStatus",
    "Hit",
    "Lease",
    "ModelInfo",
    "RankedDocument",
    "RerankBatchResult",
    "RerankQuery",
    "RerankResult",
    "SparseEmbeddingResult",
    "TokenizerFile",
    "UpsertResult",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost; the parts of a split call are added up.

    Attributes:
        tokens: Tokens computed, special tokens included, padding not.
        batches: Forward passes that held a part of the call.
        queue_time: Seconds between tokenisation and the first forward pass.
        compute_time: Seconds of those forward passes, which are shared with other calls.
        device: Where it was computed, e.g. ``"cpu"`` or ``"cuda:0"``; several are separated by commas.
        calls: Requests that the call was split into.
        retries: Attempts beyond the first, over all requests.
    """

    tokens: int
    batches: int
    queue_time: float
    compute_time: float
    device: str
    calls: int
    retries: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a server is configured with. What only a loaded model tells is 0 or empty before that.

    Attributes:
        name: The name to ask for.
        digest: Lower-case hex SHA-256 of the weights; equal digests give equal vectors.
        architecture: ``model_type`` of its configuration, e.g. ``"bert"``.
        dimension: Elements of one embedding, of a sparse one: words of the vocabulary; 0 for a reranking model.
        max_tokens: Most tokens of a text or pair, special tokens included.
        pooling: How token vectors become one; None for a reranking model.
        normalized: True if embeddings have unit L2 norm.
        compute_dtype: Element type while computing: ``"float32"``, ``"float16"`` or ``"bfloat16"``.
        device: ``"cpu"`` or ``"cuda:N"``.
        is_default: True if calls that name no model get this one.
        kind: What it makes: one dense or one sparse vector per text, or one score per pair; None if not known yet.
        state: ``"ready"`` if it answers; ``"loading"``; ``"failed"``, see ``detail``; ``"unloaded"``: configured, but
            not in memory; ``"unknown"`` if the server does not say.
        detail: Why it failed or was unloaded; empty while it is ready.
        memory_bytes: Bytes of device memory that its weights hold.
        revision: The revision that the operator named for it; empty if none.
        prompts: What is put before a text, by the name that ``prompt_name`` takes.
        default_prompt: The name of the prompt of calls that name none; None if there is none.
    """

    name: str
    digest: str
    architecture: str
    dimension: int
    max_tokens: int
    pooling: Literal["mean", "cls", "last_token", "weighted_mean", "max", "mean_sqrt_length", "splade"] | None
    normalized: bool
    compute_dtype: str
    device: str
    is_default: bool
    kind: Literal["dense", "sparse", "reranker"] | None
    state: Literal["loading", "ready", "failed", "unloaded", "unknown"]
    detail: str
    memory_bytes: int
    revision: str
    prompts: dict[str, str] = field(hash=False)
    default_prompt: str | None


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


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """A model's ``tokenizer.json``, truncation and padding off.

    Attributes:
        json: The file, for ``tokenizers.Tokenizer.from_str(file.json.decode())``.
        model: The model it belongs to.
        model_digest: The model's digest.
    """

    json: bytes
    model: str
    model_digest: str


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """A query with its candidates.

    Attributes:
        query: The query.
        documents: The candidates, at least one.
        first_stage_scores: The score of the search that found each document, larger is better; or None.
    """

    query: str
    documents: Sequence[str]
    first_stage_scores: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A scored document.

    Attributes:
        index: Index into the query's documents.
        score: The score that ranks; larger is better.
        relevance: The cross-encoder's logit.
    """

    index: int
    score: float
    relevance: float


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The documents of one query, best first.

    Attributes:
        documents: Best first.
        model: The model that answered.
        model_digest: Its digest.
        truncated_pairs: Pairs that were shortened.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
    """

    documents: list[RankedDocument]
    model: str
    model_digest: str
    truncated_pairs: int
    usage: Usage
    request_id: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class RerankBatchResult:
    """One ranking per query.

    Attributes:
        rankings: ``rankings[i]`` belongs to query i; each is best first.
        model: The model that answered.
        model_digest: Its digest.
        truncated_pairs: Pairs that were shortened, over all queries.
        usage: What it cost.
        request_id: Names the call in logs.
        trace_id: The call's trace, 32 hex digits.
    """

    rankings: list[list[RankedDocument]]
    model: str
    model_digest: str
    truncated_pairs: int
    usage: Usage
    request_id: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection of vectors.

    Attributes:
        name: Its name.
        dimension: Elements of every vector.
        metric: How nearness is measured; larger is always nearer.
        storage: Element type of the vectors on the device.
        created: True if this call made it.
    """

    name: str
    dimension: int
    metric: Literal["cosine", "dot", "l2"]
    storage: Literal["f32", "f16", "bf16"]
    created: bool


@dataclass(frozen=True, slots=True)
class UpsertResult:
    """What a write did.

    Attributes:
        inserted: Ids that were new.
        replaced: Ids that were replaced.
    """

    inserted: int
    replaced: int


@dataclass(frozen=True, slots=True, eq=False)
class FetchResult:
    """The points of some ids.

    Attributes:
        ids: Those that are there, in the order asked for.
        vectors: Their vectors as they were written, one row each; None if not asked for.
        payloads: What was stored with each, None where nothing was; None altogether if not asked for.
        missing: The ids that are not there.
    """

    ids: list[str]
    vectors: npt.NDArray[np.float32] | None
    payloads: list[dict[str, Any] | None] | None
    missing: list[str]


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that was found.

    Attributes:
        id: Its id.
        score: Larger is nearer.
        payload: What was stored with it, if anything was and it was asked for.
    """

    id: str
    score: float
    payload: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class CollectionStatistics:
    """Size, memory and use of a collection.

    Attributes:
        name: Its name.
        dimension: Elements of every vector.
        metric: How nearness is measured.
        storage: Element type of the vectors on the device.
        points: Points in it.
        device_bytes: Device memory that its vectors take, spare capacity included.
        disk_bytes: Bytes of its file.
        queries: Queries answered since the server started.
        device: Where it is searched.
    """

    name: str
    dimension: int
    metric: Literal["cosine", "dot", "l2"]
    storage: Literal["f32", "f16", "bf16"]
    points: int
    device_bytes: int
    disk_bytes: int
    queries: int
    device: str


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """The truth about a server's device.

    Attributes:
        state: Whether it can be used.
        requested_device: What the operator asked for: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        active_device: What computes; empty where nothing does.
        detail: Why, in words.
        server_version: The server's version.
        roles: The roles it serves.
        uptime: Seconds since it started.
        threads: Threads that one operation on the CPU may use.
        memory_pressure: How short the active GPU's memory is: ``"warn"`` from the server's ``--gpu-memory-warn`` on,
            ``"critical"`` from ``--gpu-memory-critical`` on; None on a CPU, and where it is not known.
        used_memory_bytes: Bytes of that memory that all processes use; None where it is not known.
        total_memory_bytes: Bytes that it has; 0 where it is not known.
    """

    state: Literal["ready", "unavailable"]
    requested_device: str
    active_device: str
    detail: str
    server_version: str
    roles: list[str]
    uptime: float
    threads: int
    memory_pressure: Literal["normal", "warn", "critical"] | None
    used_memory_bytes: int | None
    total_memory_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device of a server's machine.

    Attributes:
        id: ``"cpu"``, ``"cuda:N"``, or the UUID of a GPU that CUDA does not show to the server.
        kind: ``"cpu"``, ``"cuda"`` or ``"unknown"``.
        name: The maker's name.
        total_memory_bytes: Bytes it has.
        leased_memory_bytes: Bytes that leases hold.
        active: True if the server computes on it.
        used_memory_bytes: Bytes that all processes use; None where it is not known.
        uuid: As ``nvidia-smi -L`` lists it; empty for a CPU.
        pci_bus_id: Its place on the bus; empty for a CPU.
        temperature_celsius: Of the chip; None where it is not known.
        compute_capability: Such as ``"9.0"``; empty where it is not known.
        mig_enabled: True for a GPU that is cut into MIG devices, which are listed too.
        parent_uuid: For a MIG device, the UUID of its GPU; else empty.
    """

    id: str
    kind: str
    name: str
    total_memory_bytes: int
    leased_memory_bytes: int
    active: bool
    used_memory_bytes: int | None
    uuid: str
    pci_bus_id: str
    temperature_celsius: int | None
    compute_capability: str
    mig_enabled: bool
    parent_uuid: str


@dataclass(frozen=True, slots=True)
class Lease:
    """Device memory set aside.

    Attributes:
        lease_id: For ``renew`` and ``release``.
        device: ``"cuda:N"``.
        memory_bytes: Bytes set aside.
        expires_at: When it ends by itself; aware, UTC.
    """

    lease_id: str
    device: str
    memory_bytes: int
    expires_at: datetime
