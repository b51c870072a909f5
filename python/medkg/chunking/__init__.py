"""Documents in, chunks out: Docling's chunkers counted by the embedding model's own tokenizer.

What it is: `load_document` turns a Docling JSON, Markdown, HTML, DOCX or JATS file into a
`SourceDocument`, `Chunker` cuts that into `Chunk` objects none of which is longer than the model takes, and
`chunk_documents` does both for many files so that a bad file fails alone.

Why this way: counting with the model's own tokenizer is the only count that agrees with the server, and the
`tokenizers` package gives it without transformers. Docling's format backends are used directly, because its
`DocumentConverter` imports torch.

What it refuses to do: import torch or transformers, reach the network (but for a docling-serve address the caller
gives), truncate, or drop text silently.

Importing this package is cheap; Docling itself is imported at the first use of what needs it. The packages come with
`pip install medkg[chunking]`; without them that first use raises `MissingExtraError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medkg.chunking.chunk import BoundingBox, Chunk, Strategy
from medkg.chunking.errors import ChunkValidationError, DoclingServeUnavailableError, DocumentError, MissingExtraError
from medkg.chunking.quality import ChunkingQuality
from medkg.chunking.report import ChunkedDocument, ChunkingReport, ChunkProblem, DocumentChunks, DocumentFailure
from medkg.importing import load

if TYPE_CHECKING:
    from medkg.chunking.chunker import Chunker
    from medkg.chunking.loading import (
        DocumentIdentity,
        SourceDocument,
        discover,
        document_id_of,
        identify,
        load_document,
    )
    from medkg.chunking.pipeline import chunk_documents, chunk_loaded, iter_chunks
    from medkg.chunking.sections import SECTION_KINDS, section_kind
    from medkg.chunking.tokenizer import ModelTokenizer
    from medkg.chunking.validation import check_chunks, require_valid

__all__ = [
    "SECTION_KINDS",
    "BoundingBox",
    "Chunk",
    "ChunkProblem",
    "ChunkValidationError",
    "ChunkedDocument",
    "Chunker",
    "ChunkingQuality",
    "ChunkingReport",
    "DoclingServeUnavailableError",
    "DocumentChunks",
    "DocumentError",
    "DocumentFailure",
    "DocumentIdentity",
    "MissingExtraError",
    "ModelTokenizer",
    "SourceDocument",
    "Strategy",
    "check_chunks",
    "chunk_documents",
    "chunk_loaded",
    "discover",
    "document_id_of",
    "identify",
    "iter_chunks",
    "load_document",
    "require_valid",
    "section_kind",
]

_LAZY = {
    "Chunker": "medkg.chunking.chunker",
    "DocumentIdentity": "medkg.chunking.loading",
    "ModelTokenizer": "medkg.chunking.tokenizer",
    "SECTION_KINDS": "medkg.chunking.sections",
    "SourceDocument": "medkg.chunking.loading",
    "check_chunks": "medkg.chunking.validation",
    "chunk_documents": "medkg.chunking.pipeline",
    "chunk_loaded": "medkg.chunking.pipeline",
    "discover": "medkg.chunking.loading",
    "document_id_of": "medkg.chunking.loading",
    "identify": "medkg.chunking.loading",
    "iter_chunks": "medkg.chunking.pipeline",
    "load_document": "medkg.chunking.loading",
    "require_valid": "medkg.chunking.validation",
    "section_kind": "medkg.chunking.sections",
}


def __getattr__(name: str) -> object:
    """Import the part that needs Docling when its first name is asked for."""
    module = _LAZY.get(name)
    if module is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    value: object = getattr(load(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name the lazy parts too."""
    return sorted(__all__)
