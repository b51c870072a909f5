"""Write the DOCX and Docling JSON samples of examples/documents from the texts in document_sources.

Run it after changing a text, in an environment with `medkg[chunking]`:

    python examples/make_documents.py [FOLDER]

FOLDER is examples/documents unless named. The output depends on nothing but these texts and the versions of python-docx
and docling-core: names, dates and zip entries are fixed, so that a second run changes no byte.

The texts are original, use a small part of Markdown (headings, paragraphs, lists, tables, "Table:" captions) and are
not medical advice. The JSON samples stand for converted PDFs: a plain layout gives every item a page and a box.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from docling_core.types.doc import (
    BoundingBox,
    CoordOrigin,
    DocItemLabel,
    DoclingDocument,
    ProvenanceItem,
    Size,
    TableCell,
    TableData,
)
from docx import Document

SOURCES = Path(__file__).parent / "document_sources"
WRITTEN = datetime(2024, 1, 1, tzinfo=timezone.utc)


@dataclass
class Block:
    """A heading, paragraph, list item or table of a sample text."""

    kind: str
    text: str = ""
    level: int = 0
    rows: list[list[str]] = field(default_factory=list)


def parse(text: str) -> list[Block]:
    """Read a sample text; a blank line, or a line that opens something else, ends a block."""
    blocks: list[Block] = []
    joins = False
    for line in text.splitlines():
        if not line.strip():
            joins = False
        elif heading := re.match(r"(#+) (.*)", line):
            blocks.append(Block("heading", heading[2], level=len(heading[1]) - 1))
        elif item := re.match(r"(-|\d+\.) (.*)", line):
            blocks.append(Block("bullet" if item[1] == "-" else "number", item[2]))
            joins = True
        elif line.startswith("Table: "):
            blocks.append(Block("table", line.removeprefix("Table: ")))
        elif line.startswith("| "):
            blocks[-1].rows.append([cell.strip() for cell in line.strip("| ").split("|")])
        elif joins:
            blocks[-1].text += " " + line.strip()
        else:
            blocks.append(Block("paragraph", line))
            joins = True
    return blocks


def docx_bytes(blocks: list[Block]) -> bytes:
    """Write a Word document with Word's own styles."""
    document = Document()
    properties = document.core_properties
    properties.title, properties.author, properties.last_modified_by = blocks[0].text, "medkg", "medkg"
    properties.created = properties.modified = WRITTEN.replace(tzinfo=None)
    for block in blocks:
        if block.kind == "heading":
            document.add_heading(block.text, block.level)
        elif block.kind == "table":
            document.add_paragraph(block.text, style="Caption")
            table = document.add_table(len(block.rows), len(block.rows[0]), style="Table Grid")
            for cells, values in zip(table.rows, block.rows, strict=True):
                for cell, value in zip(cells.cells, values, strict=True):
                    cell.text = value
        else:
            styles = {"paragraph": None, "bullet": "List Bullet", "number": "List Number"}
            document.add_paragraph(block.text, style=styles[block.kind])
    written = io.BytesIO()
    document.save(written)
    return with_fixed_dates(written)


def with_fixed_dates(written: io.BytesIO) -> bytes:
    """Give every part of a zip archive the same date."""
    fixed = io.BytesIO()
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(fixed, "w") as target:
        for name in sorted(source.namelist()):
            part = zipfile.ZipInfo(name, WRITTEN.timetuple()[:6])
            part.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(part, source.read(name))
    return fixed.getvalue()


class Layout:
    """Sets blocks one below the other on US letter pages, in points counted from the bottom left."""

    WIDTH, HEIGHT, MARGIN, LINE, CHARACTERS = 612.0, 792.0, 72.0, 14.0, 85

    def __init__(self, document: DoclingDocument) -> None:
        """Start at the top of page 1."""
        self.document = document
        self.page = 0
        self.top = 0.0

    def place(self, text: str, lines: int | None = None) -> ProvenanceItem:
        """Give the next block its page and box."""
        height = self.LINE * (lines or 1 + len(text) // self.CHARACTERS)
        if self.page == 0 or self.top - height < self.MARGIN:
            self.page += 1
            self.document.add_page(page_no=self.page, size=Size(width=self.WIDTH, height=self.HEIGHT))
            self.top = self.HEIGHT - self.MARGIN
        box = BoundingBox(
            l=self.MARGIN,
            t=self.top,
            r=self.WIDTH - self.MARGIN,
            b=self.top - height,
            coord_origin=CoordOrigin.BOTTOMLEFT,
        )
        self.top -= height + self.LINE / 2
        return ProvenanceItem(page_no=self.page, bbox=box, charspan=(0, len(text)))


def docling_json(name: str, blocks: list[Block]) -> bytes:
    """Write a DoclingDocument whose items have pages and boxes, as a converted PDF has."""
    document = DoclingDocument(name=name)
    layout = Layout(document)
    items = None
    for number, block in enumerate(blocks):
        before = blocks[number - 1].kind if number else ""
        if block.kind == "heading" and block.level == 0:
            document.add_title(block.text, prov=layout.place(block.text))
        elif block.kind == "heading":
            document.add_heading(block.text, level=block.level, prov=layout.place(block.text))
        elif block.kind == "table":
            caption = document.add_text(DocItemLabel.CAPTION, block.text, prov=layout.place(block.text))
            place = layout.place("", lines=2 * len(block.rows))
            document.add_table(table_data(block.rows), caption=caption, prov=place)
        elif block.kind == "paragraph":
            document.add_text(DocItemLabel.TEXT, block.text, prov=layout.place(block.text))
        else:
            if block.kind != before or items is None:
                items = document.add_list_group(name="list")
            document.add_list_item(
                block.text, enumerated=block.kind == "number", parent=items, prov=layout.place(block.text)
            )
    return document.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode() + b"\n"


def table_data(rows: list[list[str]]) -> TableData:
    """Turn rows into Docling's table, the first row being the header."""
    cells = [
        TableCell(
            text=text,
            start_row_offset_idx=row,
            end_row_offset_idx=row + 1,
            start_col_offset_idx=column,
            end_col_offset_idx=column + 1,
            column_header=row == 0,
            row_header=row > 0 and column == 0,
        )
        for row, values in enumerate(rows)
        for column, text in enumerate(values)
    ]
    return TableData(num_rows=len(rows), num_cols=len(rows[0]), table_cells=cells)


def main(folder: Path) -> None:
    """Write all samples into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.txt")):
        name = source.stem
        blocks = parse(source.read_text(encoding="utf-8"))
        content = docx_bytes(blocks) if name.endswith(".docx") else docling_json(Path(name).stem, blocks)
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "documents")
