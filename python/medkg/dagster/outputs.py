"""What the assets hand to each other: plain data, which `medkg.dagster.TableIOManager` stores as tables."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from medkg.errors import MedkgError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from medkg.chunking import Chunk


@dataclass(frozen=True)
class SetAside:
    """A document that failed in one stage. Its siblings went on."""

    document: str
    """Path or id of the document."""
    reason: str
    """What was wrong with it, and where."""

    @classmethod
    def of(cls, document: str, error: Exception) -> SetAside:
        """A document that failed with this error."""
        if isinstance(error, MedkgError):
            return cls(document, error.message)
        text = str(error).strip() or "no message"
        return cls(document, text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}")


@dataclass(frozen=True)
class DocumentRecord:
    """What is known of a document before it is parsed."""

    document_id: str
    """Made of the file's name alone, so that an edited file stays the same document."""
    source: str
    """The file's name, without its folder."""
    path: str
    """Where it is read from: a path that the steps after this one see too."""
    media_type: str
    """Such as `text/markdown`."""
    sha256: str
    """Of the file's bytes, in hexadecimal: which version of the document it is."""
    bytes: int
    """Length of the file."""


@dataclass(frozen=True)
class DocumentSet:
    """Output of `documents`."""

    tenant: str
    """Whose they are."""
    documents: Sequence[DocumentRecord]
    """The documents that could be read, in the order of their paths."""
    set_aside: Sequence[SetAside]
    """The ones that could not."""


@dataclass(frozen=True)
class Conversion:
    """A document, and the task of a docling-serve that converts it."""

    document: DocumentRecord
    """The document."""
    task: str
    """Names the conversion; empty where nothing has to be converted."""


@dataclass(frozen=True)
class ConversionSet:
    """Output of `conversions`."""

    tenant: str
    """Whose they are."""
    conversions: Sequence[Conversion]
    """Every document, in order."""
    set_aside: Sequence[SetAside]
    """Documents that the docling-serve refused."""


@dataclass(frozen=True)
class ChunkSet:
    """Output of `chunks`."""

    tenant: str
    """Whose they are."""
    chunks: Sequence[Chunk]
    """Chunks of all documents; those of one document stand together, in reading order."""
    model: str
    """Embedding model whose tokenizer counted."""
    max_tokens: int
    """Longest chunk allowed, in tokens of that model, special tokens included."""
    set_aside: Sequence[SetAside]
    """Documents that could not be chunked."""

    @property
    def digest(self) -> str:
        """SHA-256 of the chunks' ids, in hexadecimal; each id has the digest of what is embedded."""
        return sha256("\n".join(chunk.chunk_id for chunk in self.chunks).encode()).hexdigest()


@dataclass(frozen=True)
class EmbeddingSet:
    """Output of `embeddings`."""

    tenant: str
    """Whose they are."""
    chunk_ids: Sequence[str]
    """Id of the chunk of each row."""
    vectors: npt.NDArray[np.float32]
    """Shape (chunks, dimension), float32."""
    model: str
    """Model that made them."""
    model_digest: str
    """SHA-256 of its weights, in hexadecimal."""
    set_aside: Sequence[SetAside]
    """Documents with a chunk that the server refused; none of their chunks is here."""
    chunks_digest: str = ""
    """`ChunkSet.digest` of the chunks they were made from."""
    document_ids: Sequence[str] = ()
    """Id of the document of each row."""
    document_sha256: Sequence[str] = ()
    """SHA-256 of that document's file, in hexadecimal."""
    content_sha256: Sequence[str] = ()
    """SHA-256 of the text that was embedded, in hexadecimal."""
    embedded_by: Sequence[str] = ()
    """Id of the run that computed each row: this one, or an earlier one whose vector still holds."""
    prompt: str = ""
    """What the model was given before each text."""
    dimension: int = 0
    """Elements of a vector, as the server says; 0 where it was not asked."""
    normalized: bool = False
    """Whether the server says that vectors have unit length."""


@dataclass(frozen=True)
class IndexSummary:
    """Output of `vector_index`: what is in the collection now."""

    tenant: str
    """Whose it is."""
    collection: str
    """Its name."""
    model: str
    """Embedding model of its vectors; a question has to be embedded by the same."""
    dimension: int
    """Elements of a vector."""
    metric: str
    """`cosine`, `dot` or `l2`."""
    points: int
    """Points in it, those of earlier runs included."""
    inserted: int
    """Points this run added."""
    replaced: int
    """Points this run wrote again."""
    removed: int
    """Points of these documents' earlier, longer versions, taken out."""
    device: str
    """Device that searches it."""
    model_digest: str = ""
    """SHA-256 of that model's weights, in hexadecimal."""
    stale: int = 0
    """Points in it that other weights made; questions are not compared with them."""


@dataclass(frozen=True)
class Passage:
    """A chunk that answers a question, and where it was found."""

    rank: int
    """1 is best."""
    score: float
    """What it was ordered by: the reranker's score, or that and the similarity together; larger is better."""
    relevance: float
    """The reranker's own score of the passage for the question, a logit; larger is better."""
    similarity: float
    """Similarity of its vector to the question's."""
    retrieved_rank: int
    """Its rank by that similarity alone; 1 is best."""
    chunk_id: str
    """The chunk."""
    document_id: str
    """The document."""
    document_title: str
    """The document's title."""
    source: str
    """File the document was read from."""
    headings: Sequence[str]
    """Headings above the chunk, outermost first."""
    page: int | None
    """Page it starts on, from 1; None in formats without pages."""
    text: str
    """The chunk's text."""


@dataclass(frozen=True)
class Answer:
    """A question and its passages. An element of `reranked_answers`."""

    question: str
    """As asked."""
    passages: Sequence[Passage]
    """Best first; empty if the collection is."""
