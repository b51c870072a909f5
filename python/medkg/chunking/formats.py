"""From the bytes of a file to a DoclingDocument, one function per format, each with Docling's own backend.

A backend wants a description of its input beside the input. It is made with Docling's `NoOpBackend`, because with the
real one it would parse the file a first time only to describe it.

Each function checks that the content is what the extension says. It raises `DocumentError`, or, for damage only the
parser sees, whatever the parser raises; the caller turns that into a `DocumentError` too.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING

from medkg.chunking.errors import DocumentError, chunking_extra
from medkg.chunking.text import clean

with chunking_extra():
    from docling.backend.html_backend import HTMLDocumentBackend
    from docling.backend.md_backend import MarkdownDocumentBackend
    from docling.backend.msword_backend import MsWordDocumentBackend
    from docling.backend.noop_backend import NoOpBackend
    from docling.backend.xml.jats_backend import JatsDocumentBackend
    from docling.datamodel.backend_options import HTMLBackendOptions
    from docling.datamodel.base_models import InputFormat
    from docling.datamodel.document import InputDocument
    from docling_core.types.doc import DoclingDocument
    from lxml import etree  # type: ignore[import-untyped]  # there are no types of its own
    from pydantic import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

#: A DOCX is a zip archive; this is the most its parts may unpack to.
_MAX_UNPACKED_BYTES = 512 * 1024 * 1024
_HTML_TAG = re.compile(rb"<(?:!doctype|!--|/?[a-z])", re.IGNORECASE)
#: Doctype given to an article that has none, or an older one: Docling tells JATS by it.
_JATS_DOCTYPE = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.2 20190208//EN" '
    '"JATS-archivearticle1.dtd">'
)
#: Openings that give another format away, whatever the extension says.
_SIGNATURES = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive such as DOCX",
    b"\xd0\xcf\x11\xe0": "an old Office file or an encrypted one",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def _utf8(path: Path, content: bytes) -> bytes:
    """Give the content as UTF-8 without byte-order mark and NUL, or say why it is not text."""
    for signature, name in _SIGNATURES.items():
        if content.startswith(signature):
            action = "Save it as UTF-8" if "UTF-16" in name else "Give it the extension of what it is"
            raise DocumentError(path, f"the content is {name}", action)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}"
        raise DocumentError(path, problem, "Save it as UTF-8, for instance with iconv") from error
    return clean(text).encode("utf-8")


def convert_json(path: Path, content: bytes) -> DoclingDocument:
    """Read what Docling itself wrote."""
    action = "Use Docling's own JSON export (format 'json')"
    try:
        document = DoclingDocument.model_validate_json(_utf8(path, content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DocumentError(path, f"not a DoclingDocument: {where}: {first['msg']}", action) from error
    except (LookupError, AttributeError, RecursionError) as error:
        problem = f"not a DoclingDocument: its references do not fit together ({type(error).__name__}: {error})"
        raise DocumentError(path, problem, action) from error
    # The schema has a default for it, so any JSON object would pass for an empty document.
    if "schema_name" not in document.model_fields_set:
        raise DocumentError(path, "not a DoclingDocument: it has no schema_name", action)
    return document


def convert_markdown(path: Path, content: bytes) -> DoclingDocument:
    """Read Markdown with tables (GitHub flavour)."""
    stream = io.BytesIO(_utf8(path, content))
    described = InputDocument(stream, InputFormat.MD, NoOpBackend, filename=path.name)
    return MarkdownDocumentBackend(described, stream).convert()


def convert_html(path: Path, content: bytes) -> DoclingDocument:
    """Read a page; pictures and style sheets it names are not fetched."""
    text = _utf8(path, content)
    if not _HTML_TAG.search(text):
        raise DocumentError(path, "the content has no HTML element", "Give it the extension of what it is")
    stream = io.BytesIO(text)
    described = InputDocument(stream, InputFormat.HTML, NoOpBackend, filename=path.name)
    # By default everything before the first heading is set aside as page furniture, an abstract included.
    options = HTMLBackendOptions.model_validate({"infer_furniture": False})
    return HTMLDocumentBackend(described, stream, options).convert()


def convert_docx(path: Path, content: bytes) -> DoclingDocument:
    """Read a Word document."""
    action = "Open it in a word processor and save it again as DOCX, without a password"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
            has_text = "word/document.xml" in archive.namelist()
            if unpacked > _MAX_UNPACKED_BYTES:
                problem = f"unpacks to {unpacked} bytes, more than the limit of {_MAX_UNPACKED_BYTES}"
                raise DocumentError(path, problem, "Split it, or remove its pictures")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise DocumentError(path, f"not a DOCX file ({error})", action) from error
    if damaged is not None:
        raise DocumentError(path, f"its part {damaged} is damaged", action)
    if not has_text:
        raise DocumentError(path, "a zip archive, but no DOCX: it has no word/document.xml", action)
    stream = io.BytesIO(content)
    described = InputDocument(stream, InputFormat.DOCX, NoOpBackend, filename=path.name)
    return MsWordDocumentBackend(described, stream).convert()


def convert_jats(path: Path, content: bytes) -> DoclingDocument:
    """Read a journal article in JATS XML; entities and DTDs it names are not fetched."""
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise DocumentError(path, f"not well-formed XML ({error})", "Export it again") from error
    if root.tag != "article":
        problem = f"XML, but not JATS: its root is <{root.tag}>, not <article>"
        raise DocumentError(path, problem, "Use the publisher's JATS file, or convert it to HTML or Markdown")
    info = root.getroottree().docinfo
    if not any(kind in (info.system_url or "") for kind in ("JATS-journalpublishing", "JATS-archive")):
        content = etree.tostring(root, encoding="utf-8", xml_declaration=True, doctype=_JATS_DOCTYPE)
    stream = io.BytesIO(content)
    described = InputDocument(stream, InputFormat.XML_JATS, NoOpBackend, filename=path.name)
    return JatsDocumentBackend(described, stream).convert()


#: Which function reads which extension.
CONVERTERS: Mapping[str, Callable[[Path, bytes], DoclingDocument]] = {
    ".docx": convert_docx,
    ".htm": convert_html,
    ".html": convert_html,
    ".json": convert_json,
    ".markdown": convert_markdown,
    ".md": convert_markdown,
    ".nxml": convert_jats,
    ".xml": convert_jats,
}
