"""Where something was measured, and on which state of the sources."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
GENERATED = (":!bench/results", ":!docs/performance.md", ":!docs/plots")


def machine() -> dict[str, Any]:
    """Processor, cores, and the vector extensions that matter here."""
    flags: set[str] = set()
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() == "flags":
                    flags = set(value.split())
    except OSError:
        pass
    return {"cpu": name, "cores": os.cpu_count(), "flags": [flag for flag in FLAGS if flag in flags], "gpu": None}


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself."""
    return bool(BF16_FLAGS & set(machine()["flags"]))


def commit(root: Path) -> str:
    """The commit, with `-changed` if a source differs from it; what the bench itself writes is no source."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", *GENERATED)
    return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")
