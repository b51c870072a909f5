"""PDF on its way to a Docling document: kept, handed to a docling-serve, and taken back when it is converted.

What is converted is known by the SHA-256 of the PDF and stays in storage, so nothing is converted twice, whichever run
asks. A result is taken from the server once and stored at once: docling-serve forgets it then. Nothing here knows
Dagster.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medkg.dagster.outputs import Conversion, DocumentRecord, SetAside
from medkg.dagster.whole_files import write_whole
from medkg.errors import ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upath import UPath

    from medkg.dagster.ingestion import Progress

PDF: Final = "application/pdf"
"""Media type of what is converted; documents of others are handed on as they are."""


class ConversionStorage:
    """Where a tenant's PDF and what they were converted to are kept."""

    def __init__(self, base: UPath, *, tenant: str) -> None:
        """Opens a storage; nothing is read.

        Args:
            base: Folder or address of all tenants.
            tenant: Whose.
        """
        self._pdf, self._converted = base / "pdf" / tenant, base / "converted" / tenant

    def pdf(self, digest: str) -> UPath:
        """Where the PDF of that SHA-256 is."""
        return self._pdf / f"{digest}.pdf"

    def converted(self, digest: str) -> UPath:
        """Where its Docling document is, as JSON."""
        return self._converted / f"{digest}.json"


def keep_pdfs(
    documents: Sequence[DocumentRecord], storage: ConversionStorage, *, progress: Progress
) -> tuple[list[DocumentRecord], list[SetAside]]:
    """Copies PDF into storage, so that what is converted later is what was listed now.

    Returns:
        The documents, those that are PDF with their new path and digest; and the ones that are not what they say.
    """
    kept: list[DocumentRecord] = []
    failed: list[SetAside] = []
    for done, document in enumerate(documents, start=1):
        if document.media_type != PDF:
            kept.append(document)
        else:
            content = Path(document.path).read_bytes()
            digest = sha256(content).hexdigest()
            path = storage.pdf(digest)
            if not content.startswith(b"%PDF-"):
                failed.append(SetAside(document.document_id, "the content is not PDF"))
            else:
                if not path.exists():
                    write_whole(path, content)
                kept.append(replace(document, path=str(path), sha256=digest, bytes=len(content)))
        progress(done, len(documents))
    return kept, failed


def submit(
    documents: Sequence[DocumentRecord],
    storage: ConversionStorage,
    *,
    docling_serve: str,
    progress: Progress,
) -> tuple[list[Conversion], list[SetAside]]:
    """Hands the PDF in that are not converted yet.

    Raises:
        medkg.chunking.DoclingServeUnavailableError: The docling-serve does not answer.
    """
    from upath import UPath  # noqa: PLC0415 - beside what it is needed for

    from medkg.chunking.docling_serve import submit_file  # noqa: PLC0415 - an extra

    conversions: list[Conversion] = []
    failed: list[SetAside] = []
    for done, document in enumerate(documents, start=1):
        task = ""
        try:
            if document.media_type == PDF and not storage.converted(document.sha256).exists():
                task = submit_file(Path(document.source), UPath(document.path).read_bytes(), docling_serve)
        except ServiceUnavailableError:
            raise
        except ValueError as error:  # the server refuses this file
            failed.append(SetAside(document.document_id, str(error)))
        else:
            conversions.append(Conversion(document, task))
        progress(done, len(documents))
    return conversions, failed


def collect(
    conversions: Sequence[Conversion],
    storage: ConversionStorage,
    *,
    docling_serve: str,
    progress: Progress,
) -> tuple[list[DocumentRecord], list[Conversion], list[SetAside]]:
    """Takes what is converted, and stores it.

    Returns:
        The documents, with the path of the Docling document where they were PDF; the conversions that are not done; and
        the documents whose conversion failed.

    Raises:
        medkg.chunking.DoclingServeUnavailableError: The docling-serve does not answer.
    """
    from medkg.chunking.docling_serve import fetch_document, is_finished  # noqa: PLC0415 - an extra

    documents: list[DocumentRecord] = []
    waiting: list[Conversion] = []
    failed: list[SetAside] = []
    for done, one in enumerate(conversions, start=1):
        source, target = Path(one.document.source), storage.converted(one.document.sha256)
        try:
            if one.document.media_type != PDF:
                documents.append(one.document)
            elif target.exists() or is_finished(source, docling_serve, one.task):
                if not target.exists():
                    converted = fetch_document(source, docling_serve, one.task)
                    write_whole(target, converted.model_dump_json(by_alias=True, exclude_none=True).encode())
                documents.append(replace(one.document, path=str(target)))
            else:
                waiting.append(one)
        except ServiceUnavailableError:
            raise
        except ValueError as error:  # this conversion failed, or the server knows it no longer
            failed.append(SetAside(one.document.document_id, str(error)))
        progress(done, len(conversions))
    return documents, waiting, failed
