"""sentence-transformers in-process, fp32: the encoder, and the cross-encoder."""
# ruff: noqa: TID251

from __future__ import annotations

import time
from typing import Any

import torch
from answering import serve, versions
from sentence_transformers import CrossEncoder, SentenceTransformer


def load(model: str, reranker: str, threads: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Loads both models, and says what they can do."""
    torch.set_num_threads(threads)
    # The reranker's file holds float16; computing in that on a CPU is slower, and not the comparison that is meant.
    single = {"model_kwargs": {"dtype": torch.float32}}
    encoder = SentenceTransformer(model, device="cpu", **single)
    cross = CrossEncoder(reranker, device="cpu", **single)

    def vectors(texts: list[str]) -> list[list[float]]:
        return encoder.encode(texts, show_progress_bar=False, normalize_embeddings=True).tolist()

    def scores(query: str, passages: list[str]) -> list[float]:
        pairs = [(query, passage) for passage in passages]
        plain = torch.nn.Identity()
        return cross.predict(pairs, show_progress_bar=False, activation_fn=plain).tolist()

    def embed(texts: list[str], batch: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            encoder.encode(texts, batch_size=batch, show_progress_bar=False, normalize_embeddings=True)
        return time.perf_counter() - started

    def rerank(query: str, passages: list[str], batch: int) -> float:
        pairs = [(query, passage) for passage in passages]
        started = time.perf_counter()
        with torch.inference_mode():
            cross.predict(pairs, batch_size=batch, show_progress_bar=False)
        return time.perf_counter() - started

    actions = {"vectors": vectors, "scores": scores, "embed": embed, "rerank": rerank}
    return versions("sentence-transformers", "transformers", "torch"), actions


serve(load)
