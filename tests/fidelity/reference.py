"""The reference pipeline: sentence-transformers and transformers, in an interpreter of their own.

    python reference.py REQUEST.json ANSWER.npz

The request names what to compute; everything runs one input at a time, so that no batching can hide a difference.
This folder's reference files are the only ones of the suite that may import torch, and they run where
`MEDKG_REFERENCE_PYTHON` points to.
"""
# ruff: noqa: TID251

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch


def embed(folder: str, texts: list[str], batch_size: int) -> np.ndarray:
    """sentence-transformers' vectors, f32 [texts, dimension]."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    vectors = model.encode(texts, batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True)
    return np.asarray(vectors, dtype=np.float32)


def sparse(folder: str, texts: list[str]) -> np.ndarray:
    """sentence-transformers' sparse vectors, dense f32 [texts, words]."""
    from sentence_transformers import SparseEncoder

    model = SparseEncoder(folder, device="cpu")
    rows = [model.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False) for text in texts]
    return np.concatenate([np.asarray(row, dtype=np.float32) for row in rows])


def score(folder: str, pairs: list[list[str]]) -> np.ndarray:
    """transformers' raw logits of a one-label classifier, f32 [pairs]."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = []
    for query, document in pairs:
        inputs = tokenizer(query, document, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**inputs).logits[0, 0].item())
    return np.asarray(logits, dtype=np.float32)


def main() -> None:
    """Answers one request."""
    request = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(request.get("threads", 1)))
    answer = {}
    if "sparse_model" in request:
        answer["rows"] = sparse(request["sparse_model"], request["texts"])
    elif "texts" in request:
        answer["vectors"] = embed(request["embedding_model"], request["texts"], request.get("batch_size", 1))
    if "pairs" in request:
        answer["scores"] = score(request["reranking_model"], request["pairs"])
    np.savez(sys.argv[2], **answer)


main()
