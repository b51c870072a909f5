"""A small checkpoint whose numbers outgrow bfloat16, or even float32, for the words that a test chooses.

Written by hand, because no real text drives a well-trained model there. One element of a token's vector (`GATE`) is
negative for every word but two kinds, and one neuron of the feed-forward network multiplies it by 3.4e38 before a ReLU:
a weight that float32 holds and bfloat16 rounds to infinity. What comes out of the neuron is multiplied by 0.

| word's gate | bfloat16 | float32 |
|---|---|---|
| negative | 0 | 0 |
| a little above 0 | infinity, times 0: not a number | a large number, times 0: 0 |
| large | not a number | 3.4e38 times more than 1: infinity, times 0: not a number |
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np

from .checkpoints import safetensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HIDDEN = 32
VOCABULARY = 30522
WEIGHT = 3.4e38
GATE, NEURON = 5, 3


def write_overflowing(
    folder: Path, tokenizer: Path, *, rescued: Sequence[str], hopeless: Sequence[str], scores: bool = False
) -> Path:
    """Writes a BERT with two layers, for embeddings or with a head that scores pairs.

    Args:
        folder: Where to.
        tokenizer: A folder with a tokenizer.json of BERT's vocabulary.
        rescued: Words that are too much for bfloat16 and not for float32.
        hopeless: Words that are too much for both.
        scores: Whether it is a reranker.
    """
    random = np.random.default_rng(11)
    wide, positions = 2 * HIDDEN, 64
    words: dict[str, int] = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype("<f4")

    prefix = "bert." if scores else ""
    embeddings = f"{prefix}embeddings"
    tensors = {
        f"{embeddings}.word_embeddings.weight": normal(VOCABULARY, HIDDEN),
        f"{embeddings}.position_embeddings.weight": normal(positions, HIDDEN),
        f"{embeddings}.token_type_embeddings.weight": normal(2, HIDDEN),
    }
    norms = [embeddings]
    # The second layer is there so that attention brings what the first one made to the token that scores a pair.
    for number in range(2):
        layer = f"{prefix}encoder.layer.{number}"
        for name, outputs, inputs in (
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", wide, HIDDEN),
            ("output.dense", HIDDEN, wide),
        ):
            tensors[f"{layer}.{name}.weight"] = normal(outputs, inputs) / 4
            tensors[f"{layer}.{name}.bias"] = normal(outputs) / 4
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    for name in norms:
        tensors[f"{name}.LayerNorm.weight"] = np.ones(HIDDEN, "<f4")
        tensors[f"{name}.LayerNorm.bias"] = np.zeros(HIDDEN, "<f4")
    if scores:
        tensors["bert.pooler.dense.weight"], tensors["bert.pooler.dense.bias"] = normal(HIDDEN, HIDDEN), normal(HIDDEN)
        tensors["classifier.weight"], tensors["classifier.bias"] = normal(1, HIDDEN), normal(1)

    # Nothing but the word decides about the gate.
    layer = f"{prefix}encoder.layer.0"
    for table in ("word", "position", "token_type"):
        tensors[f"{embeddings}.{table}_embeddings.weight"][:, GATE] = 0
    tensors[f"{layer}.attention.output.dense.weight"][GATE] = 0
    tensors[f"{layer}.attention.output.dense.bias"][GATE] = 0
    gates = tensors[f"{embeddings}.word_embeddings.weight"][:, GATE]
    gates[:] = -2
    gates[[words[word] for word in rescued]] = 0.3
    gates[[words[word] for word in hopeless]] = 9
    tensors[f"{layer}.intermediate.dense.weight"][NEURON] = 0
    tensors[f"{layer}.intermediate.dense.weight"][NEURON, GATE] = WEIGHT
    tensors[f"{layer}.intermediate.dense.bias"][NEURON] = 0
    tensors[f"{layer}.output.dense.weight"][:, NEURON] = 0

    config = {
        "architectures": ["BertForSequenceClassification" if scores else "BertModel"],
        "model_type": "bert",
        "hidden_act": "relu",
        "hidden_size": HIDDEN,
        "intermediate_size": wide,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "vocab_size": VOCABULARY,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    if scores:
        config["id2label"] = {"0": "LABEL_0"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(tokenizer / "tokenizer.json", folder)
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    return folder
