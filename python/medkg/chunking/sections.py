"""What kind of section a passage stands in: indications, methods, adverse reactions and the like.

Why this way: the headings of medical texts are a small vocabulary, and where each is fixed is public: IMRaD and the
NLM's labels of structured abstracts for articles, Article 11 of Directive 2001/83/EC and 21 CFR 201.57 for drug labels,
and the usual headings of guidelines and case notes. A heading is compared as a whole, without its number and case; what
it says beyond the known words may only follow a preposition or an "and". No text is read and no model is asked.

What it refuses to do: guess. A heading that is not in the vocabulary belongs to the section around it, and where there
is none its kind is "other".
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from medkg.chunking.errors import chunking_extra
from medkg.chunking.text import clean

with chunking_extra():
    from docling_core.types.doc import FloatingItem, SectionHeaderItem, TitleItem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from docling_core.types.doc import DoclingDocument

OTHER: Final = "other"
"""The kind of a section whose heading says nothing we know."""

_PHRASES: Final[Mapping[str, str]] = {
    # Articles: IMRaD and what stands around it.
    "abstract": r"abstract|(?:author |executive |plain language )?summary|synopsis|highlights|key (?:points|messages)",
    "introduction": r"introduction|background|rationale|objectives?|aims?|purpose|research questions?|question",
    "methods": (
        r"methods?|methodology|(?:materials?|patients|participants|subjects) and methods?|methods? and materials?"
        r"|experimental (?:procedures|section)|(?:study|trial) (?:design|population)|(?:statistical|data) analys[ie]s"
        r"|search strategy|(?:in|ex)clusion criteria|eligibility(?: criteria)?|participants|randomi[sz]ation"
    ),
    "results": r"results?|findings",
    "discussion": r"discussions?|(?:strengths and )?limitations|comment",
    "conclusions": r"conclusions?|concluding remarks|interpretation",
    "references": r"references|bibliography|literature cited|works cited",
    "back_matter": (
        r"acknowledge?ments?|funding(?: information)?|(?:competing|conflicts? of|declaration of) interests?"
        r"|disclosures?"
        r"|author contributions?|contributors|ethics(?: (?:statement|approval))?|data (?:availability|sharing)"
        r"(?: statement)?|additional (?:information|files)|supplementary (?:materials?|information)"
        r"|supporting information"
        r"|abbreviations|appendi(?:x|ces)|notice|disclaimer"
    ),
    # Drug labels: SmPC and US prescribing information.
    "boxed_warning": r"boxed warnings?|black[- ]box warnings?",
    "indications": r"indications?|uses|indicated uses?|licen[cs]ed indications?",
    "dosage": (
        r"dosage|dosages|doses?|dosing|posology|administration|methods? of administration|dos(?:e|age|ing) regimens?"
        r"|drugs? and (?:doses?|dosages?)|dose (?:adjustments?|modifications?)"
    ),
    "dosage_forms": r"dosage forms?|pharmaceutical forms?|formulations?|presentations?",
    "contraindications": r"contra-?indications?|when not to use",
    "warnings": r"warnings?|precautions|cautions?|(?:effects on (?:the )?)?ability to drive",
    "adverse_reactions": (
        r"(?:adverse|undesirable|unwanted|side)[- ](?:drug )?(?:reactions?|effects?|events?)|side-?effects?|harms"
        r"|safety|toxicity|tolerability|complications of treatment"
    ),
    "interactions": r"(?:drug|medicinal|food)?[- ]?(?:drug )?interactions?",
    "specific_populations": (
        r"(?:use in )?(?:specific|special) (?:populations?|patient groups?)|(?:use in )?pregnan(?:cy|t women)|lactation"
        r"|breast-?feeding|fertility|(?:use in |dosage in )?(?:children|the elderly|older (?:people|adults))"
        r"|(?:paediatric|pediatric|geriatric)(?: (?:use|population|patients))?"
        r"|(?:renal|hepatic|kidney|liver) impairment|women who (?:are|may become) pregnant"
        r"|women of childbearing potential"
    ),
    "overdose": r"over-?dos(?:e|age)s?|poisoning",
    "dependence": r"(?:drug )?abuse|(?:drug )?dependence|misuse",
    "pharmacology": (
        r"(?:clinical )?pharmacology|pharmaco(?:dynamics?|kinetics?)|pharmaco(?:dynamic|kinetic|logical) properties"
        r"|mechanisms? of action|how the drugs? works?"
    ),
    "nonclinical": r"(?:non-?clinical|pre-?clinical) (?:toxicology|safety(?: data)?|studies)|carcinogenesis",
    "clinical_studies": r"clinical (?:studies|trials|efficacy|evidence)",
    "description": r"description|(?:qualitative and quantitative )?composition|(?:list of )?excipients",
    "storage": r"how supplied|storage|handling|shelf[- ]life|special precautions for storage|incompatibilities",
    "patient_information": r"patient (?:counsell?ing )?information|(?:information for|advice to|counsell?ing) patients",
    # Guidelines and case notes.
    "definition": r"definitions?|(?:definition and )?causes|a?etiology|pathophysiology|pathogenesis",
    "epidemiology": r"epidemiology|incidence|prevalence|risk factors",
    "presentation": (
        r"clinical (?:features|presentation|manifestations)|(?:signs|symptoms)(?: and (?:signs|symptoms))?"
        r"|(?:chief|presenting) complaint|history(?: of present(?:ing)? (?:illness|complaint))?|recognition"
        r"|(?:past )?(?:medical|surgical|family|social) history|(?:physical )?examination|case (?:report|presentation)"
    ),
    "allergies": r"allerg(?:y|ies)",
    "diagnosis": (
        r"(?:differential )?diagnos[ie]s|investigations?|(?:laboratory |diagnostic )?tests?|severity|assessment"
    ),
    "treatment": r"treatments?|management|therap(?:y|ies)|interventions?|(?:current )?medications?|(?:care )?plan",
    "prevention": r"prevention|prophylaxis|vaccination|immuni[sz]ation",
    "monitoring": r"monitoring|follow-?up|surveillance",
    "prognosis": r"prognosis|outcomes?|mortality",
    "recommendations": r"recommendations?|guidance|practice points",
}
SECTION_KINDS: Final[tuple[str, ...]] = (*_PHRASES, OTHER)
"""Every kind a section can have."""

#: What stands beneath these belongs to them: "Results" in an abstract, "Treatment" in the methods of a trial.
_CONTAINERS: Final = frozenset({"abstract", "methods", "references", "back_matter"})
_QUALIFIERS: Final = (
    r"(?:(?:therapeutic|special|general|common|very common|rare|serious|important|potential|possible|clinical|main|key"
    r"|practical|initial|long-term|recommended|usual|preventive|empirical|supportive|absolute|relative) )?"
)
#: What follows known words without changing what a section is about.
_REST: Final = r"(?:(?:,| (?:and|or|of|in|for|to|with|during|on|at|after|before|by|from|under|that|which|as)\b).*)?"
_PATTERNS: Final = {kind: re.compile(rf"{_QUALIFIERS}(?:{phrases}){_REST}") for kind, phrases in _PHRASES.items()}
_EXACT: Final = {kind: re.compile(phrases) for kind, phrases in _PHRASES.items()}
_NUMBER: Final = re.compile(r"(?:section |chapter |part |§ ?)?(\d+(?:\.\d+)*)[.):]?(?=\s|$)\s*", re.IGNORECASE)
_LETTER: Final = re.compile(r"(?:[ivxlc]{1,6}|[a-z])[.)]\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Section:
    """The section an element of a document stands in.

    Attributes:
        kind: one of `SECTION_KINDS`.
        ref: the heading that opens it, such as "#/texts/12"; empty before the first one.
        headings: the headings from the outermost down to that one.
    """

    kind: str
    ref: str
    headings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Heading:
    level: int
    number: str
    text: str
    section: Section
    is_title: bool

    def holds(self, level: int, number: str) -> bool:
        """Tell whether a heading of that level and number stands beneath this one."""
        # Documents that came from PDF have every heading on one level; their numbers tell what is beneath what.
        return self.level < level or bool(self.number and number.startswith(f"{self.number}."))


def section_kind(heading: str) -> str:
    """Give the kind of section that a heading opens; "other" when it is none we know."""
    text = _plain(heading)
    # "Metformin: contraindications" names the section last; with a kind before the colon too, that one counts.
    for part in (text, *re.split(r"\s*(?:: | [-–—] )\s*", text)):
        for kind, pattern in _PATTERNS.items():
            if pattern.fullmatch(part):
                return kind
    return OTHER


def outline(document: DoclingDocument, title: str) -> dict[str, Section]:
    """Give the section of every element in the body, by its reference.

    Args:
        document: what Docling made of the file.
        title: of the document. As a heading it counts only if it is nothing but the name of a section, since
            "Treatment of asthma" as a title does not make the whole document one section.
    """
    sections: dict[str, Section] = {}
    above: list[_Heading] = []
    current = Section(OTHER, "", ())
    for item, _ in document.iterate_items():
        if isinstance(item, TitleItem | SectionHeaderItem) and item.text.strip():
            level = item.level if isinstance(item, SectionHeaderItem) else 0
            found = _NUMBER.match(item.text)
            number = found.group(1) if found else ""
            while above and not above[-1].holds(level, number):
                above.pop()
            is_title = " ".join(item.text.split()) == title
            text = clean(item.text)
            current = _section(item.self_ref, text, above, is_title=is_title)
            above.append(_Heading(level, number, text, current, is_title))
        sections[item.self_ref] = current
    # Captions may stand anywhere, in JATS at the end of the document: they belong to what they are captions of.
    for item, _ in document.iterate_items():
        if isinstance(item, FloatingItem):
            sections.update({ref.cref: sections[item.self_ref] for ref in (*item.captions, *item.footnotes)})
    return sections


def _section(ref: str, text: str, above: list[_Heading], *, is_title: bool) -> Section:
    """Give the section that a heading opens, or that it goes on with."""
    headings = (*(heading.text for heading in above), text)
    if is_title:
        kind = next((kind for kind, pattern in _EXACT.items() if pattern.fullmatch(_plain(text))), OTHER)
        return Section(kind, ref, headings)
    around = above[-1].section if above else None
    if around is not None and around.kind in _CONTAINERS:
        return around
    kind = section_kind(text)
    # Beneath nothing but the title every heading opens a section; deeper down only one that we know.
    if around is None or kind != OTHER or all(heading.is_title for heading in above):
        return Section(kind, ref, headings)
    return around


def _plain(heading: str) -> str:
    """Give a heading without number, case, brackets and closing marks."""
    text = " ".join(unicodedata.normalize("NFKC", heading).split()).casefold()
    text = re.sub(r" ?[&/] ?", " and ", text)
    text = _NUMBER.sub("", text, count=1) if _NUMBER.match(text) else _LETTER.sub("", text, count=1)
    return re.sub(r"\s*\([^)]*\)", "", text).strip(" .:;*#")
