"""Small real tokenizers, one per family, trained on the texts of the test; for the reference interpreter.

Each is the class that the family's checkpoints name, so that its normalisation, its special tokens and its pairs are
the real ones; only the vocabulary is small.
"""
# ruff: noqa: TID251

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = 1200
# What a reranker's answer must be one token of, alone at the start of a line.
ANSWERS = ["yes", "no"] * 400


def word_pieces(texts: list[str], special: list[str]) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def byte_pairs(texts: list[str], special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *ANSWERS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def bert(texts: list[str], limit: int) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab=word_pieces(texts, special), model_max_length=limit)


def mpnet(texts: list[str], limit: int) -> Any:
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    return MPNetTokenizer(vocab=word_pieces(texts, special), model_max_length=limit)


def roberta(texts: list[str], limit: int) -> Any:
    vocabulary, merges = byte_pairs(texts, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=limit)


def xlm_roberta(texts: list[str], limit: int) -> Any:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=WORDS,
        special_tokens=special,
        unk_token="<unk>",  # noqa: S106
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=limit)


def modernbert(texts: list[str], limit: int) -> Any:
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocabulary, merges = byte_pairs(texts, special)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=limit,
        model_input_names=["input_ids", "attention_mask"],
        unk_token="[UNK]",  # noqa: S106
        cls_token="[CLS]",  # noqa: S106
        sep_token="[SEP]",  # noqa: S106
        pad_token="[PAD]",  # noqa: S106
        mask_token="[MASK]",  # noqa: S106
    )


def qwen3(texts: list[str], limit: int) -> Any:
    """Without a special token: the reranker's."""
    vocabulary, merges = byte_pairs(texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=limit)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def qwen3_embedding(texts: list[str], limit: int) -> Any:
    """With <|endoftext|> at the end, whose vector is the text's."""
    tokenizer = qwen3(texts, limit)
    end = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B:1 {end}:1",
        special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))],
    )
    return tokenizer


TOKENIZERS: dict[str, Callable[[list[str], int], Any]] = {
    "bert": bert,
    "roberta": roberta,
    "xlm-roberta": xlm_roberta,
    "mpnet": mpnet,
    "modernbert": modernbert,
    "qwen3": qwen3,
    "qwen3-embedding": qwen3_embedding,
}
