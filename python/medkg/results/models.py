"""Models and their tokenizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Literal


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
