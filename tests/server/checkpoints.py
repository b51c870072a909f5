"""Small checkpoints with random weights, written by hand: enough to be loaded, told apart, exchanged and broken."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 30522


class Written(NamedTuple):
    """A checkpoint."""

    folder: Path
    digest: str
    """SHA-256 of its weights."""
    bytes: int
    """Of its weights in f32."""


def write_bert(
    folder: Path,
    tokenizer: Path,
    *,
    seed: int,
    hidden: int = 32,
    wide: int | None = None,
    positions: int = 64,
    sparse: bool = False,
) -> Written:
    """Writes a BERT with one layer; `tokenizer` is a folder with a tokenizer.json of BERT's vocabulary.

    `wide` is the width of its feed-forward network, twice `hidden` unless told otherwise. With `sparse` it has a word
    predictor and makes sparse vectors.
    """
    random = np.random.default_rng(seed)
    wide = wide or 2 * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCABULARY, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    layer = "encoder.layer.0"
    for name, outputs, inputs in (
        (f"{layer}.attention.self.query", hidden, hidden),
        (f"{layer}.attention.self.key", hidden, hidden),
        (f"{layer}.attention.self.value", hidden, hidden),
        (f"{layer}.attention.output.dense", hidden, hidden),
        (f"{layer}.intermediate.dense", wide, hidden),
        (f"{layer}.output.dense", hidden, wide),
    ):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)
    norms = ["embeddings", f"{layer}.attention.output", f"{layer}.output"]
    folder.mkdir(parents=True, exist_ok=True)
    if sparse:
        head = "cls.predictions"
        shapes[f"{head}.transform.dense.weight"] = (hidden, hidden)
        shapes[f"{head}.transform.dense.bias"] = (hidden,)
        shapes[f"{head}.bias"] = (VOCABULARY,)
        norms.append(f"{head}.transform")
        steps = [
            {"idx": 0, "path": "", "type": "MLMTransformer"},
            {"idx": 1, "path": "1_Splade", "type": "SpladePooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "1_Splade").mkdir()
        (folder / "1_Splade" / "config.json").write_text('{"pooling_strategy": "max"}')
    for name in norms:
        shapes[f"{name}.LayerNorm.weight"] = shapes[f"{name}.LayerNorm.bias"] = (hidden,)
    tensors = {name: random.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    return _write(folder, tokenizer, config, tensors)


def write_qwen3(folder: Path, tokenizer: Path, *, seed: int, hidden: int = 32) -> Written:
    """Writes a Qwen3 with one layer, two heads that share one of keys and values; `tokenizer` as in `write_bert`."""
    random = np.random.default_rng(seed)
    head, layer = hidden // 2, "layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (VOCABULARY, hidden),
        "norm.weight": (hidden,),
        f"{layer}.input_layernorm.weight": (hidden,),
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        f"{layer}.self_attn.q_proj.weight": (2 * head, hidden),
        f"{layer}.self_attn.k_proj.weight": (head, hidden),
        f"{layer}.self_attn.v_proj.weight": (head, hidden),
        f"{layer}.self_attn.o_proj.weight": (hidden, 2 * head),
        f"{layer}.self_attn.q_norm.weight": (head,),
        f"{layer}.self_attn.k_norm.weight": (head,),
        f"{layer}.mlp.gate_proj.weight": (2 * hidden, hidden),
        f"{layer}.mlp.up_proj.weight": (2 * hidden, hidden),
        f"{layer}.mlp.down_proj.weight": (hidden, 2 * hidden),
    }
    config = {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": head,
        "max_position_embeddings": 64,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-6,
        "vocab_size": VOCABULARY,
    }
    tensors = {name: random.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    return _write(folder, tokenizer, config, tensors)


def _write(folder: Path, tokenizer: Path, config: dict[str, object], tensors: dict[str, np.ndarray]) -> Written:
    """Writes a checkpoint's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer / "tokenizer.json", folder)
    weights = safetensors(tensors)
    (folder / "model.safetensors").write_bytes(weights)
    return Written(folder, hashlib.sha256(weights).hexdigest(), sum(tensor.nbytes for tensor in tensors.values()))


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    """The file format: the header's length in eight bytes, a JSON header, the data."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values())
