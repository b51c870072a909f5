"""Model FLOPs: additions and multiplications of a BERT encoder's matrix products, from its shape and the token counts.

Counted as in "PaLM: Scaling Language Modeling with Pathways" (Chowdhery et al. 2022, appendix B), for a forward pass:
two per weight and token in the six linear layers of a block, and the two products of attention. Padding counts
nothing, so wasted work lowers the utilisation. Embeddings, norms, softmax and pooling are not counted: there is no
matrix product in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Encoder:
    """The shape of a BERT encoder."""

    layers: int
    hidden: int
    intermediate: int

    @classmethod
    def read(cls, folder: Path) -> Encoder:
        """Out of a checkpoint's config.json."""
        config = json.loads((folder / "config.json").read_text())
        return cls(config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"])

    def flops(self, tokens: Iterable[int]) -> int:
        """FLOPs of one forward pass over texts of these lengths, special tokens included."""
        linear = 2 * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)
        attention = 2 * 2 * self.hidden
        return self.layers * sum(linear * length + attention * length**2 for length in tokens)
