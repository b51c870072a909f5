"""The cross-encoder: started from the base model's layers, trained in groups, scored, written out in fp16."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BertForSequenceClassification

from first_stage import FloatArray, load_tokenizer, pad

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from evaluate import Scorer

MAX_TOKENS = 160
"""Query and passage together, special tokens included, in training."""

HIDDEN_DROPOUT = 0.1


def pair_tokenizer(base_model: Path, max_tokens: int = MAX_TOKENS) -> Tokenizer:
    """A tokenizer for pairs that cuts the longer side first, which is the passage."""
    tokenizer = load_tokenizer(base_model)
    tokenizer.enable_truncation(max_tokens, strategy="longest_first")
    return tokenizer


def start_from(base_model: Path, seed: int) -> BertForSequenceClassification:
    """The base model's six layers and pooler with a fresh one-logit head; word embeddings stay as they are.

    Attention dropout is off: on a CPU it costs more time than it is worth.
    """
    torch.manual_seed(seed)
    model = BertForSequenceClassification.from_pretrained(
        str(base_model),
        num_labels=1,
        hidden_dropout_prob=HIDDEN_DROPOUT,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model.bert.embeddings.word_embeddings.requires_grad_(requires_grad=False)
    return model


def logits(
    model: BertForSequenceClassification, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """Raw logits, float32 [pairs]: the higher, the more relevant."""
    encodings = tokenizer.encode_batch(list(pairs))
    ids, mask = pad([encoding.ids for encoding in encodings])
    types, _ = pad([encoding.type_ids for encoding in encodings])
    output: torch.Tensor = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    return output.squeeze(-1).float()


def scorer(model: BertForSequenceClassification, tokenizer: Tokenizer, batch: int = 30) -> Scorer:
    """A function from pairs to logits that leaves the model in the mode it found it in."""

    @torch.inference_mode()
    def score(pairs: Sequence[tuple[str, str]]) -> FloatArray:
        training = model.training
        model.eval()
        order = sorted(range(len(pairs)), key=lambda row: len(pairs[row][0]) + len(pairs[row][1]))
        out: FloatArray = np.zeros(len(pairs), dtype=np.float32)
        for start in range(0, len(order), batch):
            chunk = order[start : start + batch]
            out[chunk] = logits(model, tokenizer, [pairs[row] for row in chunk]).numpy()
        model.train(training)
        return out

    return score


def export(model: BertForSequenceClassification, base_model: Path, out: Path) -> None:
    """Write config, fp16 weights and tokenizer as ``AutoModelForSequenceClassification`` reads them."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    config = {
        key: value
        for key, value in json.loads((base_model / "config.json").read_text(encoding="utf-8")).items()
        if not key.startswith("_") and key not in {"gradient_checkpointing", "transformers_version"}
    }
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "relevance"},
        "label2id": {"relevance": 0},
        "problem_type": "regression",
        "torch_dtype": "float16",
    }
    _write_json(out / "config.json", config)
    load_tokenizer(base_model).save(str(out / "tokenizer.json"))
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "BertTokenizer",
            "model_max_length": model.config.max_position_embeddings,
            "do_lower_case": True,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "mask_token": "[MASK]",
        },
    )
    shutil.copyfile(base_model / "special_tokens_map.json", out / "special_tokens_map.json")


def load_exported(path: Path) -> BertForSequenceClassification:
    """An exported model, its fp16 weights widened to float32 for scoring on a CPU."""
    model = BertForSequenceClassification.from_pretrained(str(path), dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
