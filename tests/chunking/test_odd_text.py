"""Text that breaks naive splitters: long headings, endless words, wide tables, joined emoji, NUL, inline markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from medkg.chunking import Chunker, load_document
from medkg.chunking.coverage import uncovered_items
from medkg.chunking.text import split_to_fit

if TYPE_CHECKING:
    from pathlib import Path

    from medkg.chunking import Chunk

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"


def chunks_of(chunker: Chunker, folder: Path, text: str, name: str = "odd.md") -> list[Chunk]:
    """Chunk one text and check the two promises."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    source = load_document(path)
    chunks = chunker.chunk(source)
    assert max(chunk.token_count for chunk in chunks) <= chunker.max_tokens
    assert uncovered_items(source.document, chunks) == ()
    return chunks


def test_a_heading_longer_than_the_model_is_told_once_in_full(chunker: Chunker, tmp_path: Path) -> None:
    heading = " ".join(f"heading{number}" for number in range(400))
    chunks = chunks_of(chunker, tmp_path, f"# {heading}\n\nFirst text.\n\n## Doses\n\nSecond text.\n")
    told = [chunk for chunk in chunks if chunk.text.startswith("heading") or "heading399" in chunk.text]
    assert " ".join(chunk.text for chunk in told).split() == heading.split()
    first = next(chunk for chunk in chunks if chunk.text == "First text.")
    assert first.headings == (heading,)
    assert first.embedding_text.startswith("heading0 heading1 ")
    second = next(chunk for chunk in chunks if chunk.text == "Second text.")
    assert second.headings == (heading, "Doses")
    assert second.embedding_text == "Doses\nSecond text."


def test_a_section_without_text_keeps_its_heading(chunker: Chunker, tmp_path: Path) -> None:
    chunks = chunks_of(chunker, tmp_path, "# Title\n\n## Contraindications\n\n## Doses\n\nTen milligrams.\n")
    (empty,) = (chunk for chunk in chunks if "Contraindications" in chunk.headings)
    assert empty.text == "Contraindications"
    assert empty.embedding_text == "Title\nContraindications"
    assert empty.item_refs


def test_a_paragraph_longer_than_the_model_is_cut_between_sentences(chunker: Chunker, tmp_path: Path) -> None:
    sentences = [f"Sentence {number} tells of a drug and its dose." for number in range(120)]
    chunks = chunks_of(chunker, tmp_path, "# Title\n\n" + " ".join(sentences) + "\n")
    assert len(chunks) > 3
    assert " ".join(chunk.text for chunk in chunks) == " ".join(sentences)
    assert all(chunk.text.endswith(".") for chunk in chunks)


def test_a_paragraph_with_markup_stays_one_paragraph(chunker: Chunker, tmp_path: Path) -> None:
    text = "Give **apixaban** at the [usual](https://example.org/dose) dose, *not* less."
    (chunk,) = chunks_of(chunker, tmp_path, f"# Title\n\n{text}\n")
    assert chunk.text == "Give apixaban at the usual dose, not less."


def test_a_long_paragraph_with_markup_is_not_torn_at_it(chunker: Chunker, tmp_path: Path) -> None:
    text = " ".join(f"The drug **number {number}** is *not* given twice." for number in range(80))
    chunks = chunks_of(chunker, tmp_path, f"# Title\n\n{text}\n")
    assert len(chunks) > 1
    assert not any("\n" in chunk.text for chunk in chunks)


def test_a_list_within_a_list_keeps_its_place(chunker: Chunker, tmp_path: Path) -> None:
    text = "- first\n- second\n    - inner one\n    - inner two\n- third"
    (chunk,) = chunks_of(chunker, tmp_path, f"# Title\n\n{text}\n")
    assert chunk.text == text


def test_a_table_cell_longer_than_the_model_is_cut(chunker: Chunker, tmp_path: Path) -> None:
    cell = " ".join(f"word{number}" for number in range(300))
    chunks = chunks_of(chunker, tmp_path, f"# T\n\n| Drug | Advice |\n|---|---|\n| Digoxin | {cell} |\n| X | y |\n")
    assert len(chunks) > 1
    words = [word for chunk in chunks for word in chunk.text.split() if word.startswith("word")]
    assert words == cell.split()


def test_a_table_with_many_columns_keeps_all_of_them(chunker: Chunker, tmp_path: Path) -> None:
    columns = [f"column{number}" for number in range(60)]
    values = [f"value{number}" for number in range(60)]
    rows = "| " + " | ".join(columns) + " |\n|" + "---|" * 60 + "\n| " + " | ".join(values) + " |\n"
    chunks = chunks_of(chunker, tmp_path, f"# T\n\n{rows}")
    text = " ".join(chunk.text for chunk in chunks).split()
    assert [word for word in text if word.startswith("value")] == values


def test_a_bar_in_a_table_cell_is_a_bar(chunker: Chunker, tmp_path: Path) -> None:
    (chunk,) = chunks_of(chunker, tmp_path, "# T\n\n| Test | Result |\n|---|---|\n| r | abs\\|r\\| > 0.5 |\n")
    assert "abs|r| > 0.5" in chunk.text


@pytest.mark.parametrize(
    "odd",
    [
        FAMILY * 200,
        "e\u0301" * 2000,
        "\u202eright to left\u202c",
        "\u2028line\u2029separators\u0085",
        "\ufdfa" * 300,
        "a" * 5000,
        "\u6cbb\u7642" * 1000,
        "a-b/c." * 800,
    ],
    ids=["joined emoji", "combining", "bidi", "separators", "ligature", "endless word", "no spaces", "signs"],
)
def test_odd_text_is_kept_and_fits(chunker: Chunker, tmp_path: Path, odd: str) -> None:
    chunks = chunks_of(chunker, tmp_path, f"# Title\n\nBefore {odd} after.\n")
    together = "".join(chunk.text for chunk in chunks)
    assert "".join(odd.split()) in "".join(together.split())


def test_nul_becomes_the_replacement_character(chunker: Chunker, tmp_path: Path) -> None:
    (chunk,) = chunks_of(chunker, tmp_path, "# Ti\x00tle\n\nBefore \x00 after.\n")
    assert chunk.text == "Before \ufffd after."
    assert chunk.headings == ("Ti\ufffdtle",)
    path = tmp_path / "nul.json"
    path.write_text(
        '{"schema_name": "DoclingDocument", "name": "n", "body": {"self_ref": "#/body", "children": '
        '[{"$ref": "#/texts/0"}]}, "texts": [{"self_ref": "#/texts/0", "parent": {"$ref": "#/body"}, '
        '"label": "text", "orig": "a", "text": "one\\u0000two"}]}',
        encoding="utf-8",
    )
    (chunk,) = chunker.chunk(load_document(path))
    assert chunk.text == chunk.embedding_text == "one\ufffdtwo"


def test_text_before_the_first_heading_of_a_page_is_kept(chunker: Chunker, tmp_path: Path) -> None:
    html = "<html><head><title>Tab</title></head><body><p>Summary first.</p><h1>Title</h1><p>Text.</p></body></html>"
    chunks = chunks_of(chunker, tmp_path, html, "page.html")
    assert [chunk.text for chunk in chunks] == ["Summary first.", "Text."]
    assert chunks[0].document_title == "Title"


def test_splitting_cuts_at_whitespace_and_loses_nothing_else() -> None:
    text = "one two  three\nfour five"
    assert split_to_fit(text, lambda part: len(part) <= 9) == ["one two", "three", "four five"]
    assert split_to_fit("abcdefgh", lambda part: len(part) <= 3) == ["ab", "cd", "ef", "gh"]
    assert split_to_fit(" \n ", lambda _: True) == []
    with pytest.raises(ValueError, match="alone has more tokens"):
        split_to_fit("abc", lambda _: False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_tokens": 8}, "max_tokens: 8"), ({"max_tokens": 256, "strategy": "lines"}, "strategy: 'lines'")],
)
def test_wrong_settings_are_refused(minilm_tokenizer_json: bytes, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chunker(minilm_tokenizer_json, **arguments)
