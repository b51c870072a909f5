"""The linter refuses imports of torch in everything that a worker runs, wherever in a file they stand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import ROOT

RULE = "TID251"
"""flake8-tidy-imports' banned-api."""


def lint(code: str, path: str) -> list[dict[str, str]]:
    """What ruff, with the project's settings, says to some code as if it stood at a path of the project."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", "--stdin-filename", path, "-"],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return [finding for finding in json.loads(done.stdout) if finding["code"] == RULE]


@pytest.mark.parametrize(
    "code",
    [
        "import torch",
        "import torch.nn.functional as F",
        "from torch import cuda",
        "from transformers import AutoModel",
        "import transformers.models.bert",
        "import sentence_transformers",
        "from sentence_transformers import SentenceTransformer",
        "def load():\n    import torch\n    return torch",
        "try:\n    import torch\nexcept ImportError:\n    torch = None",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
    ],
)
@pytest.mark.parametrize("path", ["python/medkg/embedding.py", "python/medkg/dagster/torch_assets.py"])
def test_an_import_of_torch_is_refused(code: str, path: str) -> None:
    (finding,) = lint(code + "\n", path)
    assert "the worker never sees" in finding["message"]


@pytest.mark.parametrize("path", ["examples/definitions.py", "tests/dagster/projects.py", "ops/validate.py"])
def test_it_is_refused_in_what_users_copy_and_in_tests_too(path: str) -> None:
    assert lint("import torch\n", path)


def test_other_imports_are_not() -> None:
    assert lint("import numpy\nimport torchlight\n\nfrom medkg import connect\n", "python/medkg/embedding.py") == []
