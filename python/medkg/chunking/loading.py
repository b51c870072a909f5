"""From a file to a `SourceDocument`: the format is told by the extension and checked against the content.

Docling's backends are called directly. Its `DocumentConverter` would do the same and import torch on the way. PDF needs
models, so it goes to a docling-serve when the caller names one.

Refused with a `DocumentError`: extensions it does not know, empty and oversized files, text that is not UTF-8, files
whose content is another format, and documents without any text. Nothing is fetched: pictures, entities and style
sheets that a document points to stay where they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkg.chunking.coverage import body_texts
from medkg.chunking.errors import DocumentError, chunking_extra
from medkg.chunking.text import clean

with chunking_extra():
    from docling_core.types.doc import ContentLayer, SectionHeaderItem, TitleItem

    from medkg.chunking import docling_serve as serve
    from medkg.chunking import formats

if TYPE_CHECKING:
    from collections.abc import Iterable

    from docling_core.types.doc import DoclingDocument

#: Larger files fail, unless the caller says otherwise: 64 MiB.
MAX_FILE_BYTES = 64 * 1024 * 1024
_DOCX_MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_MEDIA_TYPES = {
    ".docx": _DOCX_MEDIA_TYPE,
    ".htm": "text/html",
    ".html": "text/html",
    ".json": "application/json",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".nxml": "application/xml",
    ".pdf": "application/pdf",
    ".xml": "application/xml",
}


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """One loaded document.

    Attributes:
        document_id: made of the file name alone, so that an edited file stays the same document on every machine.
        title: its title, else its first heading, else its name.
        source: file name, without its folder.
        path: the file, as given.
        media_type: such as "text/markdown".
        sha256: of the file's bytes, in hex.
        document: what Docling made of it.
    """

    document_id: str
    title: str
    source: str
    path: Path
    media_type: str
    sha256: str
    document: DoclingDocument


def discover(paths: Iterable[Path | str]) -> list[Path]:
    """List the files to load, sorted, each once.

    A folder stands for the files below it that have a known extension, hidden ones left out. Anything else is kept as
    given, even when it does not exist, so that loading can say what is wrong with it.
    """
    found: set[Path] = set()
    for given in paths:
        path = Path(given)
        if not path.is_dir():
            found.add(path)
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            # "~$" opens the lock files Word leaves beside an open document.
            found.update(
                Path(folder, name)
                for name in names
                if Path(name).suffix.lower() in _MEDIA_TYPES and not name.startswith((".", "~$"))
            )
    return sorted(found)


@dataclass(frozen=True, slots=True)
class DocumentIdentity:
    """What a file says about itself before it is parsed; attributes as in `SourceDocument`, and its length in bytes."""

    document_id: str
    source: str
    media_type: str
    sha256: str
    bytes: int


def document_id_of(path: Path | str) -> str:
    """Give the id of the document in a file, which follows from the file's name alone; nothing is read."""
    return _document_id(_source(Path(path)))


def identify(path: Path | str, *, max_file_bytes: int = MAX_FILE_BYTES) -> DocumentIdentity:
    """Read one file without parsing it.

    Raises:
        DocumentError: the file cannot be read, is empty or too large, or has an extension that is not known.
    """
    path = Path(path)
    media_type = _media_type(path)
    content = _read(path, max_file_bytes)
    source = _source(path)
    return DocumentIdentity(_document_id(source), source, media_type, hashlib.sha256(content).hexdigest(), len(content))


def load_document(
    path: Path | str, *, docling_serve: str | None = None, max_file_bytes: int = MAX_FILE_BYTES
) -> SourceDocument:
    """Load one file.

    Args:
        path: Docling JSON (.json), Markdown (.md, .markdown), HTML (.html, .htm), DOCX (.docx), JATS XML (.xml,
            .nxml) or PDF (.pdf).
        docling_serve: address of a docling-serve, such as "http://docling:5001"; only PDF needs it.
        max_file_bytes: larger files are refused before they are read.

    Raises:
        DocumentError: the file cannot be used; says why and what to do.
        DoclingServeUnavailableError: the docling-serve does not answer.
        MissingExtraError: packages of `medkg[chunking]` are missing.
    """
    path = Path(path)
    media_type = _media_type(path)
    content = _read(path, max_file_bytes)
    document = _convert(path, path.suffix.lower(), content, docling_serve)
    try:
        texts = any(text.strip() for _, text, _ in body_texts(document))
        title = clean(_title(document) or path.stem)
    except Exception as error:  # references that lead nowhere, or in a circle
        problem = f"its items do not fit together ({type(error).__name__}: {error})"
        raise DocumentError(path, problem, "Convert the original file again") from error
    if not texts:
        action = "If it is a scan, convert it with text recognition first; else leave it out"
        raise DocumentError(path, "the document has no text", action)
    source = _source(path)
    return SourceDocument(
        document_id=_document_id(source),
        title=title,
        source=source,
        path=path,
        media_type=media_type,
        sha256=hashlib.sha256(content).hexdigest(),
        document=document,
    )


def _media_type(path: Path) -> str:
    extension = path.suffix.lower()
    if extension not in _MEDIA_TYPES:
        known = ", ".join(sorted(_MEDIA_TYPES))
        raise DocumentError(path, f"unsupported extension {extension!r}", f"Use one of {known}")
    return _MEDIA_TYPES[extension]


def _source(path: Path) -> str:
    return os.fsencode(path.name).decode("utf-8", "replace")


def _read(path: Path, max_file_bytes: int) -> bytes:
    try:
        if path.is_dir():
            raise DocumentError(path, "is a folder", "Name a file, or let `discover` list the folder")
        size = path.stat().st_size
        if size > max_file_bytes:
            problem = f"has {size} bytes, more than the limit of {max_file_bytes}"
            raise DocumentError(path, problem, "Split it, or raise max_file_bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        raise DocumentError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise DocumentError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    if not content.strip():
        raise DocumentError(path, "the file is empty", "Leave it out, or write it again")
    return content


def _convert(path: Path, extension: str, content: bytes, docling_serve: str | None) -> DoclingDocument:
    if extension == ".pdf":
        return _convert_pdf(path, content, docling_serve)
    try:
        return formats.CONVERTERS[extension](path, content)
    except DocumentError:
        raise
    except Exception as error:  # the parsers raise whatever they like for a damaged file
        cause = error.__cause__ or error
        problem = f"Docling cannot convert it ({type(cause).__name__}: {cause})"
        raise DocumentError(path, problem, "Open it in its own program and save it again") from error


def _convert_pdf(path: Path, content: bytes, docling_serve: str | None) -> DoclingDocument:
    if not content.startswith(b"%PDF-"):
        raise DocumentError(path, "the content is not PDF", "Give it the extension of what it is")
    if docling_serve is None:
        action = (
            "Set docling_serve to the address of a docling-serve, or convert the file with Docling yourself and pass "
            "the JSON"
        )
        raise DocumentError(path, "PDF needs layout models, which medkg does not carry", action)
    return serve.convert_file(path, content, docling_serve)


def _title(document: DoclingDocument) -> str | None:
    # HTML's <title> lies in the furniture; a title in the body is the better one.
    layers = ({ContentLayer.BODY}, {ContentLayer.FURNITURE})
    for layer in layers:
        for item, _ in document.iterate_items(included_content_layers=layer):
            if isinstance(item, TitleItem) and item.text.strip():
                return " ".join(item.text.split())
    for item, _ in document.iterate_items():
        if isinstance(item, SectionHeaderItem) and item.text.strip():
            return " ".join(item.text.split())
    return document.name.strip() or None


def _document_id(source: str) -> str:
    # NFC, because file systems differ in how they write the same name.
    name = unicodedata.normalize("NFC", source)
    slug = re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:48] or "document"
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()
    return f"{slug}-{digest[:12]}"
