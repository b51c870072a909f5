"""By clinical section: what headings mean, and that no chunk holds two sections."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import pytest
from docling_core.types.doc import DocItemLabel, DoclingDocument

from medkg.chunking import SECTION_KINDS, Chunk, Chunker, SourceDocument, chunk_documents, load_document, section_kind
from medkg.chunking.sections import outline

SAMPLES = Path(__file__).resolve().parents[2] / "examples" / "documents"
LABEL = """# Examplin 5 mg tablets

Read this first.

## 4 Clinical particulars

### 4.1 Therapeutic indications

Examplin is indicated for hypertension.

### 4.2 Posology and method of administration

#### Adults

Take 5 mg once daily.

#### Maintenance

Take 10 mg once daily.

### 4.3 Contraindications

Hypersensitivity to examplin.

### 4.4 Special warnings and precautions for use

Stop before surgery.

### 4.8 Undesirable effects

| Effect | Frequency |
|---|---|
| Cough | Common |
| Rash | Rare |

## 6 Pharmaceutical particulars

Keep dry.
"""
KINDS = {
    "4.1 Therapeutic indications": "indications",
    "1 INDICATIONS AND USAGE": "indications",
    "4.2 Posology and method of administration": "dosage",
    "2 DOSAGE AND ADMINISTRATION": "dosage",
    "3 DOSAGE FORMS AND STRENGTHS": "dosage_forms",
    "Contra-indications": "contraindications",
    "Metformin: contraindications": "contraindications",
    "4.4 Special warnings and precautions for use": "warnings",
    "4.5 Interaction with other medicinal products": "interactions",
    "7 DRUG INTERACTIONS": "interactions",
    "4.6 Fertility, pregnancy and lactation": "specific_populations",
    "8.1 Pregnancy": "specific_populations",
    "4.8 Undesirable effects": "adverse_reactions",
    "6 ADVERSE REACTIONS": "adverse_reactions",
    "Side effects (common)": "adverse_reactions",
    "10 OVERDOSAGE": "overdose",
    "16 HOW SUPPLIED/STORAGE AND HANDLING": "storage",
    "Materials & Methods": "methods",
    "IV. Results": "results",
    "Discussion:": "discussion",
    "Use of computers": "other",
    "Treatment arms": "other",
    "": "other",
}


def written(folder: Path, text: str, name: str = "label.md") -> SourceDocument:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_document(path)


@pytest.fixture(scope="module")
def clinical() -> Chunker:
    tokenizer = Path(os.environ["MEDKG_TEST_MODEL_DIR"], "tokenizer.json").read_bytes()
    return Chunker(tokenizer, 256, strategy="clinical")


@pytest.mark.parametrize("heading", KINDS)
def test_a_heading_tells_its_kind(heading: str) -> None:
    assert section_kind(heading) == KINDS[heading]
    assert section_kind(heading) in SECTION_KINDS


@pytest.mark.requirement("isolation 1.2")
def test_a_label_becomes_one_chunk_for_each_section(clinical: Chunker, tmp_path: Path) -> None:
    chunks = clinical.chunk(written(tmp_path, LABEL))
    assert [chunk.section for chunk in chunks] == [
        "other",
        "indications",
        "dosage",
        "contraindications",
        "warnings",
        "adverse_reactions",
        "other",
    ]
    dosage = chunks[2]
    assert dosage.headings[-1] == "4.2 Posology and method of administration"
    assert dosage.text == "Adults\nTake 5 mg once daily.\nMaintenance\nTake 10 mg once daily."
    assert dosage.embedding_text == "\n".join([*dosage.headings, dosage.text])
    assert Chunk.from_dict(dosage.to_dict()) == dosage


def test_headings_on_one_level_are_nested_by_their_numbers(clinical: Chunker, tmp_path: Path) -> None:
    text = (
        "## 2 Methods\n\nA trial.\n\n## 2.1 Diagnosis\n\nBy biopsy.\n\n## 3 Results\n\nGood.\n\n## Diagnosis\n\nHard.\n"
    )
    methods, results, diagnosis = clinical.chunk(written(tmp_path, text))
    assert (methods.section, methods.headings) == ("methods", ("2 Methods",))
    assert methods.text == "A trial.\n2.1 Diagnosis\nBy biopsy."
    assert (results.section, diagnosis.section) == ("results", "diagnosis")


def test_what_stands_in_an_abstract_belongs_to_it(clinical: Chunker) -> None:
    chunks = clinical.chunk(load_document(SAMPLES / "oral-iron-kidney-disease.nxml"))
    kinds = list(dict.fromkeys(chunk.section for chunk in chunks))
    assert kinds == ["other", "abstract", "introduction", "methods", "results", "discussion"]


@pytest.mark.requirement("isolation 1.2")
@pytest.mark.parametrize("limit", [48, 256])
def test_no_chunk_mixes_sections_and_none_is_lost_or_too_long(limit: int, clinical: Chunker) -> None:
    tokenizer_json, *_ = clinical.__reduce__()[1]
    chunker = Chunker(tokenizer_json, limit, strategy="clinical")
    report = chunk_documents([SAMPLES], chunker)
    assert not report.failures
    assert max(chunk.token_count for chunk in report.chunks) <= limit
    assert all(document.uncovered_items == () for document in report.documents)
    for document in report.documents:
        source = load_document(document.path)
        sections = outline(source.document, source.title)
        captions = {ref.cref for table in source.document.tables for ref in table.captions}
        for chunk in report.chunks:
            if chunk.document_id == source.document_id:
                inside = {sections[ref].ref for ref in chunk.item_refs if ref not in captions}
                assert len(inside) == 1, chunk.chunk_id
                assert {sections[ref].kind for ref in chunk.item_refs if ref not in captions} == {chunk.section}


def test_gathering_sections_gives_fewer_chunks_of_the_same_document(clinical: Chunker) -> None:
    tokenizer_json, limit, *_ = clinical.__reduce__()[1]
    source = load_document(SAMPLES / "harbour-ckd-trial.json")
    assert len(clinical.chunk(source)) < len(Chunker(tokenizer_json, limit).chunk(source))


def test_overlap_is_there_only_if_asked_for_and_is_told(clinical: Chunker) -> None:
    tokenizer_json, limit, *_ = clinical.__reduce__()[1]
    source = load_document(SAMPLES / "community-acquired-pneumonia.md")
    assert all(chunk.overlap == 0 for chunk in clinical.chunk(source))
    chunks = Chunker(tokenizer_json, 64, overlap_tokens=16).chunk(source)
    again = [(before, chunk) for before, chunk in itertools.pairwise(chunks) if chunk.overlap]
    assert again
    for before, chunk in again:
        repeated = chunk.text[: chunk.overlap].removesuffix("\n")
        assert before.text.endswith(repeated)
        assert before.section == chunk.section
        assert chunk.token_count <= 64
    with pytest.raises(ValueError, match="overlap_tokens: 999 is out of range"):
        Chunker(tokenizer_json, limit, overlap_tokens=999)


def test_a_chunker_pickles(clinical: Chunker) -> None:
    source = load_document(SAMPLES / "sepsis-first-hours.json")
    again = pickle.loads(pickle.dumps(clinical))  # noqa: S301 - our own
    assert again.chunk(source) == clinical.chunk(source)


def test_a_caption_at_the_end_of_the_document_belongs_to_the_section_of_its_figure(
    clinical: Chunker, tmp_path: Path
) -> None:
    document = DoclingDocument(name="figure")
    document.add_heading("Results")
    document.add_text(DocItemLabel.TEXT, "Potassium rose.")
    figure = document.add_picture()
    document.add_heading("References")
    document.add_text(DocItemLabel.TEXT, "Doe 2020.")
    caption = document.add_text(DocItemLabel.CAPTION, "Fig 1 Potassium by week.")
    figure.captions.append(caption.get_ref())
    tokenizer_json, limit, *_ = clinical.__reduce__()[1]
    source = written(tmp_path, document.model_dump_json(by_alias=True, exclude_none=True), "figure.json")
    for chunker in (clinical, Chunker(tokenizer_json, limit)):
        results, references = chunker.chunk(source)
        assert (results.section, references.section) == ("results", "references")
        assert "Fig 1" in results.text


def test_overlap_is_no_lost_text(clinical: Chunker) -> None:
    tokenizer_json, *_ = clinical.__reduce__()[1]
    report = chunk_documents([SAMPLES], Chunker(tokenizer_json, 64, overlap_tokens=16))
    assert any(chunk.overlap for chunk in report.chunks)
    assert all(document.uncovered_items == () for document in report.documents)
