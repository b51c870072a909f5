"""The first stage: all-MiniLM-L6-v2 as a bi-encoder, its embeddings cached, and the top of its ranking."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import BertModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from data import Document, Query

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

MAX_TOKENS = 256
"""What the model's own sentence_bert_config.json says; its tokenizer.json cuts at 128."""


def load_tokenizer(base_model: Path) -> Tokenizer:
    """The base model's tokenizer without the truncation and fixed padding written into its file."""
    tokenizer = Tokenizer.from_file(str(base_model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad token rows with 0: ids and attention mask, both int64 [len(rows), longest]."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[number, : len(row)] = 1
    return ids, mask


class FirstStage:
    """Embeds texts with the base model: mean over tokens, then unit length."""

    def __init__(self, base_model: Path, cache: Path) -> None:
        """Read the tokenizer now and the weights only when a text is not in ``cache``."""
        self._base_model = base_model
        self._cache = cache
        self._model: BertModel | None = None
        self._tokenizer = load_tokenizer(base_model)
        self._tokenizer.enable_truncation(MAX_TOKENS)
        cache.mkdir(parents=True, exist_ok=True)

    def embed(self, name: str, texts: Sequence[str]) -> FloatArray:
        """Embeddings of ``texts``, float32 [len(texts), hidden], read from the cache when these texts are in it."""
        digest = hashlib.sha256("\x00".join(texts).encode("utf-8")).hexdigest()[:16]
        path = self._cache / f"{name}-{digest}.npy"
        if path.exists():
            cached: FloatArray = np.load(path)
            return cached
        started = time.monotonic()
        vectors = self._compute(texts)
        np.save(path, vectors)
        print(f"embedded {len(texts)} {name} texts in {time.monotonic() - started:.0f} s", flush=True)
        return vectors

    @torch.inference_mode()
    def _compute(self, texts: Sequence[str]) -> FloatArray:
        if self._model is None:
            self._model = BertModel.from_pretrained(str(self._base_model), add_pooling_layer=False).eval()
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        out: FloatArray = np.zeros((len(rows), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), 32):
            chunk = order[start : start + 32]
            ids, mask = pad([rows[row] for row in chunk])
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            out[chunk] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return out


def top(queries: FloatArray, documents: FloatArray, depth: int) -> tuple[IntArray, FloatArray]:
    """Best ``depth`` documents per query: rows int64 and cosines float32, both [queries, depth], best first."""
    scores: FloatArray = queries @ documents.T
    rows: IntArray = np.argsort(-scores, axis=1, kind="stable")[:, :depth].astype(np.int64)
    return rows, np.take_along_axis(scores, rows, axis=1)


def rank(
    stage: FirstStage, pool: str, documents: Sequence[Document], kind: str, queries: Sequence[Query], *, depth: int
) -> tuple[IntArray, FloatArray]:
    """First-stage ranking of ``queries`` over a pool, embedding (or reading) both sides; see :func:`top`."""
    document_vectors = stage.embed(pool, [document.text for document in documents])
    return top(stage.embed(kind, [query.text for query in queries]), document_vectors, depth)
