"""What counts as torch: in a process, in an installation, in a shared object.

Standard library only: the same code runs in pytest, in the clean virtual environments, and in the processes looked at.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MODULES = ("torch", "torchvision", "torchaudio", "functorch", "transformers", "sentence_transformers", "triton", "tch")
DISTRIBUTIONS = re.compile(
    r"(lib)?torch.*|pytorch.*|transformers|sentence-transformers|accelerate|triton|nvidia-.*|cuda-.*|cupy.*|tensorflow.*"
)
LIBRARIES = re.compile(
    r"lib(torch|c10|caffe2|triton|cuda\b|cudart|cublas|cudnn|cufft|curand|cusolver|cusparse|cupti|nvrtc|nccl|nvidia)\w*",
)


def installed() -> list[str]:
    """Distributions that this interpreter sees and that are torch, bring it, or are made for it."""
    names = {re.sub(r"[-_.]+", "-", dist.name).lower() for dist in distributions()}
    return sorted(name for name in names if DISTRIBUTIONS.fullmatch(name))


def importable() -> list[str]:
    """Modules that this interpreter could import."""
    return [name for name in MODULES if importlib.util.find_spec(name) is not None]


def imported() -> list[str]:
    """Modules that this process has imported."""
    return sorted({name.partition(".")[0] for name in list(sys.modules)} & set(MODULES))


def mapped() -> list[str]:
    """Libraries that this process has mapped, by file name."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count(" /")}
    return libraries(Path(file).name for file in files)


def libraries(names: Iterable[str]) -> list[str]:
    """Those of some file names that are libraries of torch or CUDA."""
    return sorted(name for name in names if LIBRARIES.match(name))


def linked(shared_objects: Iterable[Path]) -> dict[str, list[str]]:
    """What `ldd` says that each shared object needs, by file name; the loader and the kernel's part included."""
    found = {}
    for path in shared_objects:
        done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"ldd {path}: {done.stdout}{done.stderr}")
        found[str(path)] = [Path(line.split()[0]).name for line in done.stdout.splitlines() if line.strip()]
    return found


def of_this_process() -> dict[str, list[str]]:
    """All that can be said of the running process; every list is empty where there is no torch."""
    return {"installed": installed(), "importable": importable(), "imported": imported(), "mapped": mapped()}
