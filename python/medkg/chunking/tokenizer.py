"""The embedding model's own tokenizer, in the shape docling-core's chunkers ask for.

Why not docling-core's `HuggingFaceTokenizer`: it imports transformers. `tokenizers` alone reads the same
tokenizer.json, and its counts are the server's counts, because the server reads that file too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from medkg.chunking.errors import chunking_extra

with chunking_extra():
    from docling_core.transforms.chunker.tokenizer.base import BaseTokenizer
    from pydantic import PrivateAttr
    from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Counts kept per tokenizer. The chunkers ask for the same texts again and again; past this they are counted anew.
_REMEMBERED_COUNTS = 8192


class ModelTokenizer(BaseTokenizer):
    """Counts tokens as the embedding model does.

    `count_tokens` leaves special tokens out, since the chunkers add up pieces of one input; `count_input` counts
    what the model is really given.
    """

    _tokenizer: Tokenizer = PrivateAttr()
    _max_tokens: int = PrivateAttr()
    _special_tokens: int = PrivateAttr()
    _count: Callable[[str], int] = PrivateAttr()

    @classmethod
    def from_json(cls, tokenizer_json: bytes, max_tokens: int) -> ModelTokenizer:
        """Read a tokenizer.json.

        Args:
            tokenizer_json: content of the file, as the embedding service hands it out.
            max_tokens: longest input of the model, special tokens included.

        Raises:
            ValueError: `tokenizer_json` is no tokenizer, or `max_tokens` leaves no room for text.
        """
        try:
            raw = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
        except Exception as error:  # `tokenizers` raises bare Exception
            message = f"tokenizer_json: not a tokenizer.json ({error}). Pass the file's bytes unchanged"
            raise ValueError(message) from error
        # A checkpoint may hard-code both, and then every count stops at its limit.
        raw.no_truncation()
        raw.no_padding()
        tokenizer = cls()
        tokenizer._tokenizer = raw
        tokenizer._max_tokens = max_tokens
        tokenizer._special_tokens = int(raw.num_special_tokens_to_add(is_pair=False))
        # An instance's own cache: on the method it would keep every tokenizer alive.
        tokenizer._count = lru_cache(maxsize=_REMEMBERED_COUNTS)(tokenizer._count_uncached)
        if tokenizer.get_max_tokens() < 1:
            message = f"max_tokens: {max_tokens} leaves no room beside {tokenizer._special_tokens} special tokens"
            raise ValueError(message)
        return tokenizer

    @property
    def special_tokens(self) -> int:
        """Tokens the model's template adds to one text, such as [CLS] and [SEP]."""
        return self._special_tokens

    @property
    def max_input_tokens(self) -> int:
        """Longest input of the model, special tokens included."""
        return self._max_tokens

    def count_tokens(self, text: str) -> int:
        """Count the tokens of a piece of text, without special tokens."""
        return self._count(text)

    def count_input(self, text: str) -> int:
        """Count the tokens of a whole model input, special tokens included."""
        return len(self._tokenizer.encode(text).ids)

    def get_max_tokens(self) -> int:
        """Give the room for text: the model's limit less its special tokens."""
        return self._max_tokens - self._special_tokens

    def get_tokenizer(self) -> Callable[[str], int]:
        """Give the token counter, which is all docling-core's splitter wants."""
        return self.count_tokens

    def head(self, text: str, limit: int) -> str:
        """Give the longest beginning of `text`, cut between tokens, that counts at most `limit` tokens."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= limit:
            return text
        while limit > 0:
            cut = text[: offsets[limit - 1][1]]
            # A cut text may tokenise differently from the same letters in their sentence.
            if self.count_tokens(cut) <= limit:
                return cut
            limit -= 1
        return ""

    def tail(self, text: str, limit: int) -> str:
        """Give the longest end of `text`, cut before a word, that counts at most `limit` tokens; maybe nothing."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(offsets) <= limit:
            return text
        cut = offsets[-limit][0] if limit > 0 else len(text)
        while 0 < cut < len(text) and not text[cut - 1].isspace():
            cut += 1
        while cut < len(text) and self.count_tokens(text[cut:]) > limit:
            cut = next((at + 1 for at in range(cut, len(text)) if text[at].isspace()), len(text))
        return text[cut:]

    def _count_uncached(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
