"""The model's tokenizer, freed of the limits its file hard-codes."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from medkg.chunking import ModelTokenizer


def test_hard_coded_truncation_and_padding_are_undone(minilm_tokenizer_json: bytes) -> None:
    settings = json.loads(minilm_tokenizer_json)
    assert settings["truncation"]["max_length"] == 128
    assert settings["padding"] is not None
    tokenizer = ModelTokenizer.from_json(minilm_tokenizer_json, 256)
    assert tokenizer.count_tokens("word " * 1000) == 1000
    assert tokenizer.count_input("word") == 3
    assert tokenizer.count_tokens("") == 0


def test_room_is_the_limit_less_the_special_tokens(minilm_tokenizer_json: bytes) -> None:
    tokenizer = ModelTokenizer.from_json(minilm_tokenizer_json, 256)
    assert tokenizer.special_tokens == 2
    assert tokenizer.get_max_tokens() == 254
    assert tokenizer.max_input_tokens == 256
    settings = json.loads(minilm_tokenizer_json)
    settings["post_processor"] = None
    plain = ModelTokenizer.from_json(json.dumps(settings).encode(), 256)
    assert plain.special_tokens == 0
    assert plain.get_max_tokens() == 256


def test_counts_are_those_of_the_tokenizers_package(minilm_tokenizer_json: bytes) -> None:
    reference = Tokenizer.from_str(minilm_tokenizer_json.decode())
    reference.no_truncation()
    reference.no_padding()
    tokenizer = ModelTokenizer.from_json(minilm_tokenizer_json, 256)
    for text in ("Empagliflozin 10 mg", "\u2265 30 mL/min/1.73 m\u00b2", "\U0001f469\u200d\U0001f467", "a\x00b"):
        assert tokenizer.count_input(text) == len(reference.encode(text).ids)
        assert tokenizer.count_tokens(text) == len(reference.encode(text, add_special_tokens=False).ids)
        assert tokenizer.get_tokenizer()(text) == tokenizer.count_tokens(text)


def test_the_head_of_a_text_is_cut_between_tokens(minilm_tokenizer_json: bytes) -> None:
    tokenizer = ModelTokenizer.from_json(minilm_tokenizer_json, 256)
    assert tokenizer.head("one two three four", 2) == "one two"
    assert tokenizer.head("one two", 2) == "one two"
    assert tokenizer.head("one two", 0) == ""
    assert tokenizer.count_tokens(tokenizer.head("dapagliflozin and empagliflozin", 3)) <= 3


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_json: not a tokenizer.json"):
        ModelTokenizer.from_json(content, 256)


def test_a_limit_without_room_for_text_is_refused(minilm_tokenizer_json: bytes) -> None:
    with pytest.raises(ValueError, match="max_tokens: 2 leaves no room"):
        ModelTokenizer.from_json(minilm_tokenizer_json, 2)
