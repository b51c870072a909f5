"""README.md, taken apart: the commands and the snippets that it tells the reader to run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")
ADDRESS = "http://127.0.0.1:7070"
"""Where gpu-server listens by default; the tests put a running server's address in its place."""


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """Name it as an editor finds it."""
        return f"README.md:{self.line}"


def blocks(language: str) -> list[Block]:
    """Every block of a language, in order."""
    text = README.read_text("utf-8")
    found = (Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text))
    return [block for block in found if block.language == language]


def commands() -> list[str]:
    """Every command of the ```sh blocks, lines that end in a backslash joined."""
    lines = "".join(block.text for block in blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def links() -> list[str]:
    """Every link to a file of the repository."""
    found = (m[1] for m in LINK.finditer(README.read_text("utf-8")))
    return [link for link in found if "://" not in link]
