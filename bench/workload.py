"""The texts of the engine suite: seeded, and of known length, because each word below is one token for MiniLM."""

from __future__ import annotations

import random

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
VOCABULARY = """
the of in patients with treatment and clinical risk trial dose was mg heart failure blood pressure renal function
insulin glucose chronic acute therapy outcome mortality group study significant compared weeks disease associated
increased women older surgery infection bone brain lung cancer
"""
WORDS = VOCABULARY.split()
SETS = {"mixed": (8, 256), "short": (8, 24), "long": (200, 256)}
"""Name of a set to its shortest and longest text, in tokens, special tokens included."""


def lengths(kind: str, count: int) -> list[int]:
    """Tokens of each text. Mixed lengths are log-normal with a median of 90 (mu 4.5, sigma 0.7), cut to 8–256."""
    chance = random.Random(17)
    low, high = SETS[kind]
    if kind == "mixed":
        return [min(high, max(low, int(chance.lognormvariate(4.5, 0.7)))) for _ in range(count)]
    return [chance.randint(low, high) for _ in range(count)]


def sentence(tokens: int, chance: random.Random) -> str:
    """One text of so many tokens, special tokens included."""
    return " ".join(chance.choices(WORDS, k=tokens - SPECIAL_TOKENS))


def texts(kind: str, count: int) -> list[str]:
    """The first `count` texts of a set; always the same."""
    chance = random.Random(18)
    return [sentence(tokens, chance) for tokens in lengths(kind, count)]


def passages(count: int) -> tuple[str, list[str]]:
    """A query and passages, log-normal around 90 tokens; each pair stays below MiniLM's 256, so that nothing is cut."""
    chance = random.Random(19)
    sizes = [min(220, max(8, int(chance.lognormvariate(4.5, 0.7)))) for _ in range(count)]
    return sentence(16, chance), [sentence(size, chance) for size in sizes]
