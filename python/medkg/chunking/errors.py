"""The errors of chunking: a document that cannot be used, a docling-serve that is away, packages that are missing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from medkg.errors import MedkgError, ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The first part of every module the extra brings; anything else that is missing is a fault of its own.
_EXTRA_MODULES = frozenset(
    {
        "bs4",
        "docling",
        "docling_core",
        "docx",
        "huggingface_hub",
        "lxml",
        "marko",
        "requests",
        "semchunk",
        "tokenizers",
        "tree_sitter",
    }
)


class DocumentError(MedkgError, ValueError):
    """One document cannot be loaded or chunked.

    Attributes, beside those of every medkg error:
        path: the file, as given.
        problem: what is wrong with it.
        action: what the reader can do about it.
    """

    def __init__(self, path: Path | str, problem: str, action: str) -> None:
        """Keep the three parts; the message is made of them."""
        super().__init__(f"{path}: {problem}. {action}.", message=problem)
        self.path = str(path)
        self.problem = problem
        self.action = action

    def __reduce__(self) -> tuple[type[DocumentError], tuple[str, str, str]]:
        """Pickle by the three parts, since the message alone does not rebuild the error."""
        return type(self), (self.path, self.problem, self.action)

    def to_dict(self) -> dict[str, str]:
        """Give path, problem and action as JSON-safe strings."""
        return {"path": self.path, "problem": self.problem, "action": self.action}


class ChunkValidationError(DocumentError):
    """The chunks of a document are not what they should be.

    Attributes, beside those of `DocumentError`:
        problems: each as a sentence that names the chunk, what is wrong and what to do.
    """

    def __init__(self, path: Path | str, problems: tuple[str, ...]) -> None:
        """Keep the problems; the first stands in the message."""
        first, *others = problems
        more = f" (and {len(others)} more)" if others else ""
        what, _, action = first.rstrip(".").rpartition(". ")
        super().__init__(path, f"its chunks are not valid{more}: {what}", action)
        self.problems = problems

    def __reduce__(self) -> tuple[type[ChunkValidationError], tuple[str, tuple[str, ...]]]:  # type: ignore[override]
        """Pickle by path and problems."""
        return type(self), (self.path, self.problems)


class DoclingServeUnavailableError(ServiceUnavailableError):
    """The docling-serve did not answer, or failed by its own fault (HTTP 5xx). No fault of a document: try again."""


class MissingExtraError(MedkgError, ImportError):
    """The packages of `medkg[chunking]` are not installed."""


@contextmanager
def chunking_extra() -> Iterator[None]:
    """Turn a missing package of the extra into `MissingExtraError`; let any other import failure through."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_MODULES:
            raise
        message = f"chunking needs the package that provides {module!r}: pip install 'medkg[chunking]'"
        raise MissingExtraError(message) from error
