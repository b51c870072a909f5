"""ONNX Runtime, fp32: the model exported with its pooling, and a loop that sorts by length and pads within a batch.

Two graphs are offered, and the bench takes the faster one: as exported (ONNX Runtime optimises it while loading), and
with onnxruntime's own optimiser for BERT run over it first, which fuses attention.
"""
# ruff: noqa: TID251

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from answering import serve, versions
from onnxruntime.transformers import optimizer
from tokenizers import Tokenizer
from transformers import AutoModel

if TYPE_CHECKING:
    import numpy.typing as npt

LIMIT = 256  # MiniLM's max_seq_length
NAMES = ["input_ids", "attention_mask"]


class Pooled(torch.nn.Module):
    """The encoder, the mean over tokens, and unit length: all that sentence-transformers does for this model."""

    def __init__(self, model: Any) -> None:
        """Wraps it."""
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Unit vectors, f32 [texts, hidden]."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def export(model: str, plain: Path, fused: Path) -> None:
    """Writes both graphs."""
    encoder = AutoModel.from_pretrained(model, attn_implementation="sdpa", dtype=torch.float32).eval()
    example = torch.ones(2, 16, dtype=torch.int64)
    # The tracing exporter: onnxruntime's optimiser does not find attention in what torch.export writes.
    torch.onnx.export(
        Pooled(encoder),
        (example, example),
        str(plain),
        dynamo=False,
        input_names=NAMES,
        output_names=["vectors"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in NAMES},
        opset_version=17,
    )
    shape = encoder.config
    optimized = optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=shape.num_attention_heads, hidden_size=shape.hidden_size
    )
    optimized.save_model_to_file(str(fused))


class Encoder:
    """Tokenizer and sessions."""

    def __init__(self, model: str, folder: str, threads: int) -> None:
        """Exports into the folder, and loads."""
        paths = {name: Path(folder) / f"minilm-{name}.onnx" for name in ("plain", "fused")}
        export(model, paths["plain"], paths["fused"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = {
            name: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for name, path in paths.items()
        }
        self.tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LIMIT)

    def encode(self, texts: list[str], graph: str, batch: int) -> npt.NDArray[np.float32]:
        """Vectors in the order of the texts."""
        session = self.sessions[graph]
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda at: len(tokens[at]))
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            longest = len(tokens[chosen[-1]])
            ids = np.zeros((len(chosen), longest), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, at in enumerate(chosen):
                ids[row, : len(tokens[at])] = tokens[at]
                mask[row, : len(tokens[at])] = 1
            (found,) = session.run(None, dict(zip(NAMES, (ids, mask), strict=True)))
            for row, at in enumerate(chosen):
                vectors[at] = found[row]
        return np.stack(vectors)


def load(model: str, folder: str, threads: int) -> tuple[dict[str, str], dict[str, Any]]:
    """Exports, loads, and says what it can do."""
    torch.set_num_threads(threads)
    encoder = Encoder(model, folder, threads)

    def embed(texts: list[str], graph: str, batch: int) -> float:
        started = time.perf_counter()
        encoder.encode(texts, graph, batch)
        return time.perf_counter() - started

    actions = {
        "vectors": lambda texts, graph: encoder.encode(texts, graph, 8).tolist(),
        "embed": embed,
    }
    return versions("onnxruntime", "onnx", "torch"), actions


serve(load)
