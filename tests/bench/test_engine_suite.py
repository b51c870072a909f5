"""The engine suite's pure parts: the work that is counted, the texts, who is chosen, and what a lost peer leaves."""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import Tokenizer

from bench import throughput
from bench.contenders import ONNX, check, least_cosine
from bench.flops import Encoder
from bench.measure import CandidateError
from bench.peer import Peer
from bench.server import shares
from bench.throughput import Candidate, Field, compare, peer_row
from bench.workload import SETS, lengths, passages, texts

if TYPE_CHECKING:
    from pathlib import Path


def test_flops_are_those_of_a_forward_pass_written_out() -> None:
    layers, hidden, wide, tokens = 2, 4, 6, 3
    states, up, down = np.zeros((tokens, hidden)), np.zeros((hidden, wide)), np.zeros((wide, hidden))

    def product(a: np.ndarray, b: np.ndarray) -> int:
        return 2 * a.shape[0] * a.shape[1] * b.shape[1]

    square = np.zeros((hidden, hidden))
    mixing = np.zeros((tokens, tokens))
    block = 4 * product(states, square) + product(states, states.T) + product(mixing, states)
    block += product(states, up) + product(states @ up, down)
    assert Encoder(layers, hidden, wide).flops([tokens]) == layers * block
    assert Encoder(layers, hidden, wide).flops([tokens, tokens]) == 2 * layers * block
    assert Encoder(layers, hidden, wide).flops([2 * tokens]) > 2 * layers * block, "attention grows with the square"


def test_the_shape_is_read_from_the_checkpoint(minilm_dir: Path) -> None:
    assert Encoder.read(minilm_dir) == Encoder(layers=6, hidden=384, intermediate=1536)


@pytest.mark.parametrize("kind", SETS)
def test_texts_have_the_lengths_that_they_are_said_to_have(kind: str, minilm_dir: Path) -> None:
    tokenizer = Tokenizer.from_file(str(minilm_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counted = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts(kind, 300))]
    assert counted == lengths(kind, 300)
    low, high = SETS[kind]
    assert low <= min(counted) <= max(counted) <= high
    if kind == "mixed":
        assert 80 <= statistics.median(counted) <= 100
        assert max(counted) == high


def test_texts_and_passages_are_the_same_in_every_run() -> None:
    assert texts("mixed", 20) == texts("mixed", 20)
    assert texts("mixed", 40)[:20] == texts("mixed", 20)
    query, documents = passages(100)
    assert (query, documents) == passages(100)
    assert max(len(query.split()) + len(document.split()) for document in documents) + 3 <= 256


@pytest.mark.parametrize(("count", "callers"), [(10, 3), (3, 32), (1, 1)])
def test_callers_share_all_texts_and_none_has_nothing(count: int, callers: int) -> None:
    dealt = shares([str(number) for number in range(count)], callers)
    assert sorted(text for share in dealt for text in share) == sorted(str(number) for number in range(count))
    assert all(dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_each_candidate_is_compared_at_its_best_setting_and_a_broken_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "REST", 0.0)

    def broken(_: object) -> float:
        raise CandidateError("it ended")

    field = Field(
        {
            "ours": Candidate("ours", {"slow": lambda batch: len(batch) / 20, "fast": lambda batch: len(batch) / 30}),
            "peer": Candidate("peer", {"batch 1": lambda batch: len(batch) / 10}),
            "broken": Candidate("broken", {"batch 1": broken}),
        },
        {"absent": "not installed"},
    )
    rates = compare("mixed", ["text"] * 4, field, rounds=2, passes=1, extra={}, say=lambda _: None)
    row = peer_row("x", rates, "ours", "peer", 1.3)
    assert (row.median, row.holds, row.note) == (3.0, True, "fast")
    assert peer_row("x", rates, "ours", "broken", 1.3).note == "it ended"
    assert peer_row("x", rates, "ours", "absent", 1.3).note == "not installed"
    assert rates.fastest(["broken", "peer"])[0] == "peer"


def test_whoever_gives_other_vectors_is_not_compared() -> None:
    truth = [[1.0, 0.0], [0.0, 1.0]]
    assert least_cosine([[2.0, 0.0], [0.0, 3.0]], truth) == pytest.approx(1.0)
    check(ONNX, [[2.0, 0.0], [0.0, 3.0]], truth)
    with pytest.raises(CandidateError, match="cosine 0\\.98"):
        check(ONNX, [[1.0, 0.2], [0.0, 1.0]], truth)


def test_a_peer_that_cannot_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="No module named 'torch'"):
        Peer("gemm_rate", sys.executable, tmp_path / "log", threads=1)
    with pytest.raises(CandidateError, match="make bench"):
        Peer("gemm_rate", str(tmp_path / "no-python"), tmp_path / "log", threads=1)
