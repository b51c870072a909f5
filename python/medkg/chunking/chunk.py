"""What a chunk is. Plain frozen dataclasses: cheap to make by the million, to pickle and to turn into JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Strategy = Literal["hybrid", "hierarchical", "clinical"]
"""How documents are cut; see `Chunker`."""


@dataclass(frozen=True, slots=True)
class BoundingBox:
    """Where on a page a piece of a chunk lies.

    Attributes:
        page: page number, from 1.
        left, top, right, bottom: edges in the units of the source document (points for PDF).
        origin: "TOPLEFT" (top < bottom) or "BOTTOMLEFT" (top > bottom): the corner the edges are counted from.
    """

    page: int
    left: float
    top: float
    right: float
    bottom: float
    origin: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage of a document, short enough for the embedding model.

    Attributes:
        chunk_id: document id, ordinal and a digest of the embedded text; equal input gives an equal id.
        document_id: `SourceDocument.document_id`.
        document_title: title of the document.
        source: file name, without its folder.
        ordinal: place in the document, from 0.
        text: the passage itself; what a reader is shown.
        embedding_text: the passage under its headings; what is embedded.
        headings: every heading above the passage, outermost first, in full; where a chunk spans sub-headings, those
            above all of it.
        page: first page the passage touches; None when the format has no pages.
        pages: every page it touches, ascending.
        bounding_boxes: where it lies on those pages, in reading order.
        item_refs: the Docling items it is made of, such as "#/texts/12".
        token_count: tokens of `embedding_text`, special tokens included; never above the model's limit.
        document_sha256: of the document's file, in hex: which version the passage is of.
        section: kind of the section it stands in, one of `medkg.chunking.SECTION_KINDS`.
        overlap: characters at the beginning of `text` that repeat the end of the chunk before.
    """

    chunk_id: str
    document_id: str
    document_title: str
    source: str
    ordinal: int
    text: str
    embedding_text: str
    headings: tuple[str, ...]
    page: int | None
    pages: tuple[int, ...]
    bounding_boxes: tuple[BoundingBox, ...]
    item_refs: tuple[str, ...]
    token_count: int
    document_sha256: str = ""
    section: str = "other"
    overlap: int = 0

    @property
    def has_table(self) -> bool:
        """Whether rows of a table are in it, under the rule that Markdown wants below a header."""
        return "\n| -" in self.text

    def to_dict(self) -> dict[str, Any]:
        """Give the chunk as a JSON-safe dict: lists in place of tuples."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chunk:
        """Build the chunk that `to_dict` described; a missing or unknown key raises `TypeError`."""
        fields = dict(data)
        for key in ("headings", "pages", "item_refs"):
            if key in fields:
                fields[key] = tuple(fields[key])
        if "bounding_boxes" in fields:
            fields["bounding_boxes"] = tuple(BoundingBox(**box) for box in fields["bounding_boxes"])
        return cls(**fields)
