"""A document that cannot be used says why and what to do, and stops none of the others."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from medkg.chunking import Chunker, DocumentError, chunk_documents, discover, formats, load_document
from medkg.errors import MedkgError

if TYPE_CHECKING:
    from medkg.chunking import Chunk, SourceDocument

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"


def zipped(**parts: str) -> bytes:
    """Make a zip archive; an underscore in a name stands for a dot."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name.replace("_", ".").replace("word.", "word/"), text)
    return written.getvalue()


def docling(body: list[str], texts: list[dict[str, Any]]) -> bytes:
    """Make the JSON of a DoclingDocument."""
    document = {
        "schema_name": "DoclingDocument",
        "name": "test",
        "body": {"self_ref": "#/body", "children": [{"$ref": ref} for ref in body]},
        "texts": texts,
    }
    return json.dumps(document).encode()


TEXT: dict[str, Any] = {
    "self_ref": "#/texts/0",
    "parent": {"$ref": "#/body"},
    "label": "text",
    "orig": "a",
    "text": "a",
}

BAD: dict[str, tuple[str, bytes, str]] = {
    "unknown extension": ("notes.txt", b"text", "unsupported extension '.txt'"),
    "no extension": ("notes", b"text", "unsupported extension ''"),
    "empty": ("a.md", b"", "the file is empty"),
    "only spaces": ("a.html", b" \n\t", "the file is empty"),
    "Latin-1": ("a.md", "# Caf\xe9".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 5"),
    "Latin-1 page": ("a.html", "<p>Caf\xe9</p>".encode("latin-1"), "not UTF-8: byte 0xe9 at offset 6"),
    "UTF-16": ("a.md", "# Title".encode("utf-16"), "the content is UTF-16 text"),
    "PDF called Markdown": ("a.md", b"%PDF-1.7", "the content is a PDF"),
    "DOCX called HTML": ("a.html", zipped(word_document_xml="x"), "the content is a zip archive"),
    "page without markup": ("a.html", b"no markup here", "no HTML element"),
    "nothing to read": ("a.html", b"<html><body><img src='x.png'></body></html>", "the document has no text"),
    "broken archive": ("a.docx", zipped(word_document_xml="x")[:40], "not a DOCX file"),
    "not an archive": ("a.docx", b"Dear colleague", "not a DOCX file"),
    "other archive": ("a.docx", zipped(mimetype="x"), "no word/document.xml"),
    "archive without parts": ("a.docx", zipped(word_document_xml="<x/>"), "Docling cannot convert it"),
    "broken JSON": ("a.json", b'{"schema_name": "DoclingDocument", ', "not a DoclingDocument"),
    "other JSON": ("a.json", b'{"name": "x"}', "it has no schema_name"),
    "JSON list": ("a.json", b"[1, 2]", "not a DoclingDocument"),
    "lone surrogate": ("a.json", docling([], [TEXT]).replace(b'"a"', b'"\\ud800"'), "not a DoclingDocument"),
    "newer schema": (
        "a.json",
        b'{"schema_name": "DoclingDocument", "name": "x", "version": "9.0.0"}',
        "not a DoclingDocument: version",
    ),
    "no text": ("a.json", docling([], []), "the document has no text"),
    "blank text": ("a.json", docling(["#/texts/0"], [{**TEXT, "text": "  "}]), "the document has no text"),
    "dangling reference": ("a.json", docling(["#/texts/7"], [TEXT]), "its references do not fit together"),
    "circle of references": (
        "a.json",
        docling(["#/texts/0"], [{**TEXT, "children": [{"$ref": "#/texts/0"}]}]),
        "not a DoclingDocument: the file: Value error",
    ),
    "broken XML": ("a.xml", b"<article><body>", "not well-formed XML"),
    "other XML": ("a.xml", b"<recipe><p>x</p></recipe>", "not JATS: its root is <recipe>"),
    "article without text": ("a.nxml", b"<article><front/></article>", "the document has no text"),
    "not a PDF": ("a.pdf", b"GIF89a", "the content is not PDF"),
    "PDF without docling-serve": ("a.pdf", b"%PDF-1.7 x", "PDF needs layout models"),
    "nested too deeply": ("a.html", b"<div>" * 700 + b"x" + b"</div>" * 700, "Docling cannot convert it"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_error_names_the_file_and_says_what_and_what_to_do(case: str, tmp_path: Path) -> None:
    name, content, problem = BAD[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        load_document(path)
    error = caught.value
    assert error.path == str(path)
    assert problem in error.problem
    assert error.action
    assert isinstance(error, MedkgError)
    assert isinstance(error, ValueError)
    assert str(error) == f"{path}: {error.problem}. {error.action}."
    assert pickle.loads(pickle.dumps(error)).to_dict() == error.to_dict()  # noqa: S301


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no such file"):
        load_document(tmp_path / "gone.md")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(DocumentError, match="is a folder"):
        load_document(tmp_path / "folder.md")


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.md"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that could not be read
    with pytest.raises(DocumentError, match="more than the limit"):
        load_document(path)
    path.write_text("# Title\n\nText.\n", encoding="utf-8")
    with pytest.raises(DocumentError, match="has 15 bytes, more than the limit of 14"):
        load_document(path, max_file_bytes=14)
    assert load_document(path, max_file_bytes=15).title == "Title"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "bomb.docx"
    path.write_bytes(zipped(word_document_xml="x" * (1 << 20) + "x"))
    assert path.stat().st_size < 1 << 12
    with pytest.raises(DocumentError, match="unpacks to 1048577 bytes"):
        load_document(path)


def test_a_damaged_part_of_a_docx_is_named(tmp_path: Path) -> None:
    content = bytearray((SAMPLES / "methotrexate-monitoring.docx").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.getinfo("word/document.xml").header_offset
    content[start + 600] ^= 0xFF
    path = tmp_path / "damaged.docx"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=r"damaged|not a DOCX"):
        load_document(path)


def test_entities_of_a_jats_file_are_not_fetched_or_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not read", encoding="utf-8")
    path = tmp_path / "entity.xml"
    path.write_text(
        f'<!DOCTYPE article [<!ENTITY x SYSTEM "{secret.as_uri()}"><!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
        "<article><body><sec><title>T</title><p>Before &x; &b; after.</p></sec></body></article>",
        encoding="utf-8",
    )
    texts = " ".join(item.text for item in load_document(path).document.texts)
    assert "Before" in texts
    assert "do not read" not in texts
    assert "aaaa" not in texts


@pytest.mark.requirement("isolation 1.3")
def test_one_bad_document_fails_alone_and_is_listed(chunker: Chunker, tmp_path: Path) -> None:
    good = {"b.md": "# Good\n\nText of b.\n", "y.html": "<h1>Good</h1><p>Text of y.</p>"}
    for name, text in good.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    bad = []
    for number, (name, content, _) in enumerate(BAD.values()):
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(content)
        bad.append(path)
    calls: list[tuple[int, int, Path]] = []
    gone = tmp_path / "gone.json"
    files = [*(tmp_path / name for name in good), *bad, gone]
    report = chunk_documents(files, chunker, progress=lambda done, total, path: calls.append((done, total, path)))
    assert [document.source for document in report.documents] == sorted(good)
    assert {chunk.source for chunk in report.chunks} == set(good)
    assert [failure.path for failure in report.failures] == sorted([*bad, gone])
    assert all(failure.to_dict()["problem"] for failure in report.failures)
    assert [call[:2] for call in calls] == [(done, len(files)) for done in range(1, len(files) + 1)]
    assert [call[2] for call in calls] == sorted(files)


def test_a_document_that_breaks_the_chunker_fails_alone(
    chunker: Chunker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(f"# {name}\n\nText.\n", encoding="utf-8")
    whole = Chunker.chunk

    def breaks_on_a(self: Chunker, source: SourceDocument) -> list[Chunk]:
        if source.source == "a.md":
            raise KeyError("odd")
        return whole(self, source)

    monkeypatch.setattr(Chunker, "chunk", breaks_on_a)
    report = chunk_documents([tmp_path], chunker)
    assert [document.source for document in report.documents] == ["b.md"]
    assert "KeyError" in report.failures[0].error.problem


def test_the_same_document_twice_is_taken_once(chunker: Chunker, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.md").write_text("# Title\n\nText.\n", encoding="utf-8")
    report = chunk_documents([tmp_path], chunker)
    assert len(report.documents) == 1
    assert "has the same name as" in report.failures[0].error.problem


def test_discover_lists_known_files_of_a_folder_sorted_and_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.md", "a.HTML", "x.png", ".c.md", "~$d.docx", "sub/e.nxml", ".hidden/f.md"):
        (tmp_path / name).write_bytes(b"x")
    expected = [tmp_path / "a.HTML", tmp_path / "b.md", tmp_path / "sub" / "e.nxml"]
    assert discover([tmp_path]) == expected
    assert discover([str(tmp_path / "b.md"), tmp_path]) == expected
    assert discover([tmp_path / "x.png", tmp_path / "gone"]) == [tmp_path / "gone", tmp_path / "x.png"]
    assert discover([]) == []


def test_the_id_depends_on_the_name_alone_and_the_digest_on_the_content(chunker: Chunker, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    paths = [tmp_path / "a.md", tmp_path / "sub" / "a.md", tmp_path / "b.md"]
    for path, text in zip(paths, ["# T\n\nx", "# T\n\ny", "# T\n\nx"], strict=True):
        path.write_text(text, encoding="utf-8")
    first, edited, renamed = (load_document(path) for path in paths)
    assert first.document_id == edited.document_id != renamed.document_id
    assert first.sha256 == renamed.sha256 != edited.sha256
    assert [chunk.document_sha256 for chunk in chunker.chunk(edited)] == [edited.sha256]


def test_a_byte_order_mark_and_upper_case_extensions_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "Marked.MD"
    path.write_bytes("\ufeff# Title\n\nText.\n".encode())
    assert load_document(path).title == "Title"


def test_jats_without_a_doctype_is_read(chunker: Chunker, tmp_path: Path) -> None:
    path = tmp_path / "article.xml"
    text = "<article><body><sec><title>Methods</title><p>We measured.</p></sec></body></article>"
    path.write_text(text, encoding="utf-8")
    assert [item.text for item in load_document(path).document.texts] == ["", "Methods", "We measured."]
    (chunk,) = chunker.chunk(load_document(path))
    assert chunk.headings == ("Methods",)
    assert chunk.embedding_text == "Methods\nWe measured."
