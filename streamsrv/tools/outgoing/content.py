"""Content items and graphic annotations of de-identified instances (PS3.15 E.3.3 and E.3.4).

Rules
- No content item is removed, because references count items. Its value is replaced.
- Table E.3.4-1 is followed by Value Type: texts are cleaned, names, dates and UIDs treated as everywhere, and
  numbers, codes and coordinates kept. `VALUES_OF_A_PERSON` are the numbers, codes and dates that it removes.
- Of graphic annotations the shapes stay. Texts are removed, and compound graphics, which may have texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydicom.dataset import Dataset

from streamsrv.tools.outgoing.profile import CHARACTERISTICS, DEVICE, INSTITUTION
from streamsrv.tools.outgoing.values import DUMMIES

# Numbers, coordinates, references and containers have no text of their own.
VALUE_TYPES = {
    *("CODE", "COMPOSITE", "CONTAINER", "DATE", "DATETIME", "IMAGE", "NUM", "NUMERIC", "PNAME"),
    *("SCOORD", "SCOORD3D", "TCOORD", "TEXT", "TIME", "UIDREF", "WAVEFORM"),
}
BIRTH_DATE, SEX, AGE = "121031", "121032", "121033"
# Concepts of the scheme DCM, but for (74711-3, LN): texts that an option keeps.
TEXTS = {
    DEVICE: {
        *("120999", "113877", "121013", "121016", "113880", "121193", "121196", "121122", "113832"),
        *("110119", "74711-3"),
    },
    INSTITUTION: {"121017", "121197", "113873", "121009", "122128", "121434"},
}
DEVICE_UIDS = {"121012", "121198"}
ANNOTATION = frozenset(("ReferencedImageSequence", "GraphicLayer", "GraphicObjectSequence"))


class CannotClean(Exception):
    """The instance has something that is not known."""


class Cleaning(NamedTuple):
    """`clean` treats the attributes of an item, `text` gives the words of a text that stay, or ""."""

    options: frozenset[str]
    clean: Callable[[Dataset], None]
    text: Callable[[str], str]


def clean_content(items: Any, cleaning: Cleaning) -> list[Dataset]:
    """Content items of one level. Raises CannotClean for a Value Type that is not known."""
    for item in items:
        kind = str(item.get("ValueType") or "")
        if kind and kind not in VALUE_TYPES:
            raise CannotClean(f"content items of type {kind} cannot be cleaned")
        concept = _concept(item)
        uid, text = (str(item.get(keyword) or "") for keyword in ("UID", "TextValue"))
        kept = {
            concept
            for option, concepts in TEXTS.items()
            if option in cleaning.options
            for concept in concepts
        }
        cleaning.clean(item)
        if uid and concept in DEVICE_UIDS and DEVICE in cleaning.options:
            item.UID = uid
        if text:
            item.TextValue = text if concept in kept else cleaning.text(text) or DUMMIES["UT"]
        _clean_person(item, concept, cleaning.options)
    return list(items)


def _concept(item: Dataset) -> str:
    """The code of its concept name in the scheme of DICOM or LOINC, or ""."""
    names = item.get("ConceptNameCodeSequence")
    if not names or names[0].get("CodingSchemeDesignator") not in ("DCM", "LN"):
        return ""
    return str(names[0].get("CodeValue") or "")


def _clean_person(item: Dataset, concept: str, options: frozenset[str]) -> None:
    if concept == BIRTH_DATE and "Date" in item:
        item.Date = DUMMIES["DA"]
    elif CHARACTERISTICS in options:
        return
    elif concept == AGE:
        item.MeasuredValueSequence = []
    elif concept == SEX and "ConceptCodeSequence" in item:
        unknown = Dataset()
        unknown.CodeValue, unknown.CodingSchemeDesignator = "261665006", "SCT"
        unknown.CodeMeaning = "Unknown"
        item.ConceptCodeSequence = [unknown]


def clean_graphics(items: Any, clean: Callable[[Dataset], None]) -> list[Dataset]:
    """The items of Graphic Annotation Sequence that have shapes, without their texts."""
    shapes = [item for item in items if item.get("GraphicObjectSequence")]
    for item in shapes:
        for element in list(item):
            if element.keyword not in ANNOTATION:
                del item[element.tag]
        clean(item)
    return shapes


def clean_codes(items: Any, cleaning: Cleaning) -> list[Dataset]:
    """The codes of public coding schemes, with known words in their meanings (PS3.15 E.1.1, note 7)."""
    public = [item for item in items if not _is_private(str(item.get("CodingSchemeDesignator") or ""))]
    for item in public:
        meaning = str(item.get("CodeMeaning") or "")
        cleaning.clean(item)
        if "EquivalentCodeSequence" in item:  # it may have private codes
            del item.EquivalentCodeSequence
        item.CodeMeaning = cleaning.text(meaning) or DUMMIES["LO"]
    return public


def _is_private(scheme: str) -> bool:
    """Whether a Coding Scheme Designator is one of a site (PS3.3 8.2)."""
    return scheme.startswith("99") or scheme in ("L", "")
