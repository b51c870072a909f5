"""Chunking without torch, and medkg without chunking. Each check runs in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"

ONE_OF_EACH = sorted({path.suffix: path for path in sorted(SAMPLES.iterdir())}.values())
FORBIDDEN = "{'torch', 'torchvision', 'transformers', 'sentence_transformers', 'medkg._core'}"


def run(code: str, *arguments: str) -> None:
    """Run a snippet and fail with its output unless it exits 0."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.requirement("isolation 1.1")
@pytest.mark.requirement("isolation 1.3")
@pytest.mark.parametrize("path", ONE_OF_EACH, ids=lambda path: path.suffix)
def test_no_format_and_no_strategy_brings_torch(path: Path, minilm_tokenizer_json: bytes) -> None:
    assert minilm_tokenizer_json
    code = f"""
import os, sys
from pathlib import Path
from medkg.chunking import Chunker, load_document
tokenizer = Path(os.environ["MEDKG_TEST_MODEL_DIR"], "tokenizer.json").read_bytes()
for strategy in ("hybrid", "hierarchical"):
    assert Chunker(tokenizer, 256, strategy=strategy).chunk(load_document(sys.argv[1]))
assert "docling_core" in sys.modules
brought = {FORBIDDEN} & set(sys.modules)
assert not brought, brought
"""
    run(code, str(path))


def test_the_samples_hold_every_local_format() -> None:
    assert {path.suffix for path in ONE_OF_EACH} == {".docx", ".html", ".json", ".md", ".nxml"}


def test_importing_the_package_brings_neither_docling_nor_pydantic() -> None:
    run(
        "import sys, medkg.chunking\n"
        "brought = {'docling', 'docling_core', 'pydantic', 'pandas', 'tokenizers'} & set(sys.modules)\n"
        "assert not brought, brought"
    )


def test_importing_medkg_does_not_bring_chunking() -> None:
    run("import sys, medkg\nassert not {'medkg.chunking', 'docling_core', 'docling'} & set(sys.modules)")


@pytest.mark.parametrize("missing", ["docling_core", "tokenizers", "semchunk"])
def test_without_the_extra_the_first_use_says_what_to_install(missing: str) -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import medkg.chunking
try:
    medkg.chunking.Chunker
except ImportError as error:
    assert type(error) is medkg.chunking.MissingExtraError, repr(error)
    assert isinstance(error, sys.modules["medkg.errors"].MedkgError)
    assert "pip install 'medkg[chunking]'" in str(error), error
else:
    raise SystemExit("it worked without")
"""
    run(code, missing)


def test_another_missing_module_is_not_blamed_on_the_extra() -> None:
    code = """
from medkg.chunking.errors import MissingExtraError, chunking_extra
try:
    with chunking_extra():
        import no_such_module_anywhere
except MissingExtraError:
    raise SystemExit("blamed on the extra")
except ModuleNotFoundError:
    pass
"""
    run(code)
