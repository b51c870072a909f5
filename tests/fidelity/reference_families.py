"""Tiny random checkpoints of every family, and what transformers and sentence-transformers compute with them.

    python reference_families.py FOLDER

FOLDER/request.json has the texts and pairs. Writes a checkpoint folder per model, and FOLDER/answer.npz: an array per
model, a row per text or pair. Everything is computed one input at a time, so that no batching can hide a difference.
All parameters are random, biases and norms too, so that none of them can be forgotten without a trace. Runs where
`MEDKG_REFERENCE_PYTHON` points to.
"""
# ruff: noqa: TID251

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from sentence_transformers.sparse_encoder.models import SpladePooling

sys.path.insert(0, str(Path(__file__).parent))
from reference_tokenizers import TOKENIZERS

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 48
HIDDEN = 64
# Heads of 16 elements, which gpu-server's own attention takes; some models have heads of 8, for libtorch's.
SMALL = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
QWEN = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}
# Long enough for the reranker's frame around a pair.
QWEN_LIMIT = 256

Answers = dict[str, np.ndarray]


class Maker:
    """Makes checkpoints in a folder, of the request's texts."""

    def __init__(self, folder: Path, request: dict[str, Any]) -> None:
        self.folder = folder
        self.texts: list[str] = request["texts"]
        self.pairs: list[list[str]] = request["pairs"]
        self.prompt: str = request["prompt"]
        self.instruction: str = request["instruction"]
        self.answers: Answers = {}
        self.tokenizers: dict[str, Any] = {}
        self.made = 0

    def tokenizer(self, family: str, limit: int) -> Any:
        if family not in self.tokenizers:
            words = [*self.texts, *(text for pair in self.pairs for text in pair)]
            self.tokenizers[family] = TOKENIZERS[family](words, limit)
        return self.tokenizers[family]

    def base(self, family: str, kind: str, tokenizer: str = "", **config: Any) -> Path:
        """Saves a random model of a family with a head; transformers' own files only."""
        limit = QWEN_LIMIT if family == "qwen3" else LIMIT
        tokenizer_of = self.tokenizer(tokenizer or family, limit)
        positions = {"roberta": LIMIT + 2, "xlm-roberta": LIMIT + 2, "mpnet": LIMIT + 2}.get(family, limit)
        sizes = QWEN if family == "qwen3" else SMALL
        special = {
            "pad_token_id": tokenizer_of.pad_token_id,
            "bos_token_id": tokenizer_of.bos_token_id,
            "eos_token_id": tokenizer_of.eos_token_id,
        }
        extra = {
            "roberta": {"type_vocab_size": 1},
            "xlm-roberta": {"type_vocab_size": 1},
            # A window that is smaller than the texts, and more than one layer of each kind.
            "modernbert": {"local_attention": 8, "num_hidden_layers": 4},
        }.get(family, {})
        built = transformers.AutoConfig.for_model(
            family,
            **{
                **sizes,
                **special,
                "vocab_size": len(tokenizer_of) + 3,
                "max_position_embeddings": positions,
                **extra,
                **config,
            },
        )
        model = getattr(transformers, kind).from_config(built).eval()
        randomise(model)
        self.made += 1
        target = self.folder / f"base-{self.made}"
        model.save_pretrained(target)
        tokenizer_of.save_pretrained(target)
        return target

    def embedding(self, name: str, base: Path, *behind: Any, prompts: dict[str, str] | None = None) -> None:
        """A bi-encoder with the given modules behind the transformer."""
        model = SentenceTransformer(
            modules=[Transformer(str(base)), *behind],
            device="cpu",
            prompts=prompts,
            default_prompt_name=next(iter(prompts)) if prompts else None,
        )
        model.save(str(self.folder / name))
        self.embed(name)

    def embed(self, name: str) -> None:
        model = SentenceTransformer(str(self.folder / name), device="cpu")
        self.answers[name] = np.asarray(model.encode(self.texts, batch_size=1, show_progress_bar=False), np.float32)

    def embed_ends(self, name: str) -> None:
        """The same with what is too long cut off at its beginning."""
        model = SentenceTransformer(str(self.folder / name), device="cpu")
        model.tokenizer.truncation_side = "left"
        vectors = model.encode(self.texts, batch_size=1, show_progress_bar=False)
        self.answers[f"{name}:ends"] = np.asarray(vectors, np.float32)

    def sparse(self, name: str, base: Path, pooling: SpladePooling) -> None:
        model = SparseEncoder(modules=[Transformer(str(base), transformer_task="fill-mask"), pooling], device="cpu")
        model.save(str(self.folder / name))
        model = SparseEncoder(str(self.folder / name), device="cpu")
        rows = [model.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False) for text in self.texts]
        self.answers[name] = np.concatenate([np.asarray(row, np.float32) for row in rows])

    def classifier(self, name: str, base: Path) -> None:
        """A cross-encoder with one label; the raw logits of its pairs."""
        base.rename(self.folder / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder / name)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder / name).eval()
        logits = []
        for query, document in self.pairs:
            inputs = tokenizer(query, document, truncation=True, return_tensors="pt")
            logits.append(model(**inputs).logits[0, 0].item())
        self.answers[name] = np.asarray(logits, np.float32)

    def judge(self, name: str, base: Path, score: Callable[[Any, torch.Tensor, Any], float], kind: str) -> None:
        """Qwen3-Reranker, as its documentation computes it, without and with an instruction."""
        base.rename(self.folder / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder / name, padding_side="left")
        model = getattr(transformers, kind).from_pretrained(self.folder / name).eval()
        opening = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
        )
        closing = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        before = tokenizer.encode(opening, add_special_tokens=False)
        after = tokenizer.encode(closing, add_special_tokens=False)
        default = "Given a web search query, retrieve relevant passages that answer the query"
        for suffix, instruction in (("", default), (":instructed", self.instruction)):
            scores = []
            for query, document in self.pairs:
                text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
                room = QWEN_LIMIT - len(before) - len(after)
                ids = tokenizer(text, truncation="longest_first", max_length=room)["input_ids"]
                scores.append(score(model, torch.tensor([[*before, *ids, *after]]), tokenizer))
            self.answers[f"{name}{suffix}"] = np.asarray(scores, np.float32)


def randomise(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        norm = parameter.dim() == 1 and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3 if parameter.dim() == 1 else 0.15)


def yes_minus_no(model: Any, ids: torch.Tensor, tokenizer: Any) -> float:
    logits = model(ids).logits[0, -1]
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    assert yes is not None and no is not None and yes != no  # noqa: PT018
    return (logits[yes] - logits[no]).item()


def one_label(model: Any, ids: torch.Tensor, tokenizer: Any) -> float:
    return model(ids).logits[0, 0].item()


def bi_encoders(maker: Maker) -> None:
    families = {
        "bert": {},
        "roberta": {"hidden_act": "gelu_new"},
        "xlm-roberta": {},
        "mpnet": {"hidden_act": "relu"},
        "modernbert": {"attention_bias": True, "norm_bias": True},
        "qwen3": {"tokenizer": "qwen3-embedding"},
    }
    for family, config in families.items():
        base = maker.base(family, "AutoModel", **config)
        for mode in Pooling.POOLING_MODES:
            maker.embedding(f"{family}-{mode}", base, Pooling(HIDDEN, mode), Normalize())
        maker.embed_ends(f"{family}-mean")
    bert = maker.base("bert", "AutoModel", hidden_act="gelu_pytorch_tanh")
    maker.embedding("two-poolings", bert, Pooling(HIDDEN, ("cls", "mean")))
    layers = [Dense(HIDDEN, 24), Dense(24, 16, bias=False, activation_function=torch.nn.Identity()), Normalize()]
    maker.embedding("dense", bert, Pooling(HIDDEN, "mean"), *layers)
    prompts = {"query": maker.prompt, "document": ""}
    maker.embedding("prompted", bert, Pooling(HIDDEN, "mean"), prompts=prompts)
    for mode in Pooling.POOLING_MODES:
        maker.embedding(f"unpooled-prompt-{mode}", bert, Pooling(HIDDEN, mode, include_prompt=False), prompts=prompts)
    for name in ("prompted", "unpooled-prompt-weightedmean"):
        model = SentenceTransformer(str(maker.folder / name), device="cpu")
        for key, choice in (("named", {"prompt_name": "document"}), ("instructed", {"prompt": maker.instruction})):
            vectors = model.encode(maker.texts, batch_size=1, show_progress_bar=False, **choice)
            maker.answers[f"{name}:{key}"] = np.asarray(vectors, np.float32)
    shutil.copytree(maker.folder / "bert-mean", maker.folder / "matryoshka")
    settings = maker.folder / "matryoshka" / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "truncate_dim": 24}))
    maker.embed("matryoshka")
    for activation in ("silu", "tanh"):
        base = maker.base("bert", "AutoModel", hidden_act=activation)
        maker.embedding(f"bert-{activation}", base, Pooling(HIDDEN, "mean"))
    # As old versions wrote it: one flag per mode.
    shutil.copytree(maker.folder / "roberta-weightedmean", maker.folder / "old-flags")
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    flags = {f"pooling_mode_{mode}": mode == "weightedmean_tokens" for mode in modes}
    old = {"word_embedding_dimension": HIDDEN, **flags, "include_prompt": True}
    (maker.folder / "old-flags" / "1_Pooling" / "config.json").write_text(json.dumps(old))
    maker.embed("old-flags")
    # Heads of 8 elements, and texts that are lower-cased first.
    for family in ("bert", "modernbert"):
        small = maker.base(family, "AutoModel", num_attention_heads=8)
        maker.embedding(f"{family}-heads-of-8", small, Pooling(HIDDEN, "cls"), Normalize())
    roberta = maker.base("roberta", "AutoModel")
    maker.embedding("lower-cased", roberta, Pooling(HIDDEN, "mean"))
    lower = maker.folder / "lower-cased" / "sentence_bert_config.json"
    lower.write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    maker.embed("lower-cased")
    # Plain checkpoints, with a head that nobody reads: mean, or a decoder's last token.
    for name, family, kind, config in (
        ("plain-bert", "bert", "AutoModelForMaskedLM", {}),
        ("plain-modernbert", "modernbert", "AutoModelForMaskedLM", {"mlp_bias": True}),
        (
            "plain-qwen3",
            "qwen3",
            "AutoModelForCausalLM",
            {"attention_bias": True, "head_dim": 8, "tokenizer": "qwen3-embedding"},
        ),
    ):
        maker.base(family, kind, **config).rename(maker.folder / name)
        maker.embed(name)
    old_configurations(maker)


def old_configurations(maker: Maker) -> None:
    """config.json as transformers 4 wrote it: rotary bases under names of their own, and a rule instead of a list."""
    ropes = {"sliding_attention": {"rope_theta": 900.0}, "full_attention": {"rope_theta": 70_000.0}}
    ropes = {kind: {"rope_type": "default", **rope} for kind, rope in ropes.items()}
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    modern = maker.base("modernbert", "AutoModel", rope_parameters=ropes, layer_types=kinds)
    rope = {"rope_type": "default", "rope_theta": 5_000.0}
    qwen = maker.base("qwen3", "AutoModel", tokenizer="qwen3-embedding", rope_parameters=rope)
    old = {
        "new-modernbert": (modern, {}),
        "old-modernbert": (
            modern,
            {"global_rope_theta": 70_000.0, "local_rope_theta": 900.0, "global_attn_every_n_layers": 2},
        ),
        "new-qwen3": (qwen, {}),
        "old-qwen3": (qwen, {"rope_theta": 5_000.0, "rope_scaling": None}),
    }
    for name, (base, fields) in old.items():
        shutil.copytree(base, maker.folder / name)
        file = maker.folder / name / "config.json"
        config = json.loads(file.read_text())
        if fields:
            for field in ("rope_parameters", "layer_types"):
                assert config.pop(field), field
        file.write_text(json.dumps({**config, **fields}))
        maker.embed(name)
    for family in ("modernbert", "qwen3"):
        assert np.array_equal(maker.answers[f"old-{family}"], maker.answers[f"new-{family}"])


def storage(maker: Maker) -> None:
    """One model, stored in every way that checkpoints come in."""
    from safetensors.torch import load_file, save_file

    def variant(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        shutil.copytree(maker.folder / "plain-bert", maker.folder / name)
        file = maker.folder / name / "model.safetensors"
        save_file({key: value.contiguous() for key, value in change(load_file(file)).items()}, file, {"format": "pt"})

    def bare(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}

    def legacy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, old in renamed:
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        return tensors

    def extra(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            **tensors,
            "bert.embeddings.position_ids": torch.arange(LIMIT)[None],
            "bert.embeddings.what_nobody_knows": torch.ones(3),
        }

    variant("stored-bare", bare)
    variant("stored-legacy", legacy)
    variant("stored-extra", extra)
    variant("stored-f16", lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    shutil.copytree(maker.folder / "plain-bert", maker.folder / "stored-sharded")
    (maker.folder / "stored-sharded" / "model.safetensors").unlink()
    model = transformers.AutoModelForMaskedLM.from_pretrained(maker.folder / "plain-bert")
    model.save_pretrained(maker.folder / "stored-sharded", max_shard_size="60KB")
    assert len(list((maker.folder / "stored-sharded").glob("model-*.safetensors"))) > 2
    for name in ("stored-bare", "stored-legacy", "stored-extra", "stored-sharded"):
        maker.answers[name] = maker.answers["plain-bert"]
    half = transformers.AutoModel.from_pretrained(maker.folder / "stored-f16", dtype=torch.float32)
    half.save_pretrained(maker.folder / "half-in-full")
    maker.tokenizers["bert"].save_pretrained(maker.folder / "half-in-full")
    maker.embed("half-in-full")
    maker.answers["stored-f16"] = maker.answers["half-in-full"]


def sparse_encoders(maker: Maker) -> None:
    for family in ("bert", "roberta", "mpnet"):
        base = maker.base(family, "AutoModelForMaskedLM")
        maker.sparse(f"splade-{family}", base, SpladePooling("max"))
    maker.sparse("splade-sum", base, SpladePooling("sum", activation_function="log1p_relu"))
    # A word predictor of its own, without a bias.
    base = maker.base("modernbert", "AutoModelForMaskedLM", decoder_bias=False, tie_word_embeddings=False)
    maker.sparse("splade-modernbert", base, SpladePooling("max"))


def cross_encoders(maker: Maker) -> None:
    kind = "AutoModelForSequenceClassification"
    for family in ("bert", "roberta", "xlm-roberta", "mpnet", "modernbert"):
        maker.classifier(f"rerank-{family}", maker.base(family, kind, num_labels=1))
    mean = {"classifier_pooling": "mean", "classifier_bias": True, "classifier_activation": "silu"}
    maker.classifier("rerank-modernbert-mean", maker.base("modernbert", kind, num_labels=1, **mean))
    for name, tied in (("rerank-qwen3", True), ("rerank-qwen3-untied", False)):
        base = maker.base("qwen3", "AutoModelForCausalLM", tie_word_embeddings=tied)
        maker.judge(name, base, yes_minus_no, "AutoModelForCausalLM")
    maker.judge("rerank-qwen3-label", maker.base("qwen3", kind, num_labels=1), one_label, kind)


def main() -> None:
    """Makes everything."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(3)
    maker = Maker(folder, json.loads((folder / "request.json").read_text()))
    with torch.inference_mode():
        bi_encoders(maker)
        storage(maker)
        sparse_encoders(maker)
        cross_encoders(maker)
    np.savez(folder / "answer.npz", **maker.answers)


main()
