"""Tags, keywords and value representations of PS3.6, from the data dictionaries of pydicom.

A tag has two forms: eight upper-case hex digits ("00100010") in DICOM JSON and in the rooms above, and the
number 0x00100010 in the readers of this room. Only this module reads the dictionaries.

pydicom.datadict imports all of pydicom: 0.2 s of processor time of each start. So this module loads the two
files of tables alone. Their names are private, so pyproject.toml has an upper bound for pydicom.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import PathFinder
from types import ModuleType

TRANSFER_SYNTAX_UID = "00020010"
SPECIFIC_CHARACTER_SET = "00080005"
SOP_CLASS_UID = "00080016"
SOP_INSTANCE_UID = "00080018"
RETRIEVE_URL = "00081190"
AVAILABLE_TRANSFER_SYNTAX_UID = "00083002"
PATIENT_NAME = "00100010"
PATIENT_ID = "00100020"
STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SAMPLES_PER_PIXEL = "00280002"
PHOTOMETRIC_INTERPRETATION = "00280004"
PLANAR_CONFIGURATION = "00280006"
NUMBER_OF_FRAMES = "00280008"
ROWS = "00280010"
COLUMNS = "00280011"
BITS_ALLOCATED = "00280100"
BITS_STORED = "00280101"
HIGH_BIT = "00280102"
PIXEL_REPRESENTATION = "00280103"
EXTENDED_OFFSET_TABLE = "7FE00001"
EXTENDED_OFFSET_TABLE_LENGTHS = "7FE00002"
FLOAT_PIXEL_DATA = "7FE00008"
DOUBLE_FLOAT_PIXEL_DATA = "7FE00009"
PIXEL_DATA = "7FE00010"

_HEX = re.compile(r"[0-9A-Fa-f]{8}")


def _tables(module: str) -> ModuleType:
    """Returns a module of pydicom without its package. Raises ImportError if pydicom has no such module."""
    package = importlib.util.find_spec("pydicom")
    spec = PathFinder.find_spec(module, package.submodule_search_locations) if package else None
    if spec is None or spec.loader is None:
        raise ImportError(f"pydicom has no module {module}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


_STANDARD = _tables("_dicom_dict")
# Of a row: its VR ("US or SS" if ambiguous, "NONE" of delimiters), its multiplicity, and its keyword.
Row = Sequence[str]
_VR, _VM, _NAME, _KEYWORD = 0, 1, 2, 4

# Ambiguous VRs are "US or SS", "OB or OW", "US or SS or OW" and "US or OW".
_VRS: dict[int, str] = {tag: row[_VR] for tag, row in _STANDARD.DicomDictionary.items() if row[_VR] != "NONE"}
_TAGS: dict[str, int] = {row[_KEYWORD]: tag for tag, row in _STANDARD.DicomDictionary.items()}

# Standard tags as numbers -> as hex digits. A look-up takes a third of the time of formatting.
KEYS: dict[int, str] = {tag: f"{tag:08X}" for tag in _VRS}


def _repeating() -> dict[int, dict[int, dict[int, Row]]]:
    """Repeating groups and elements ("50xx0010") as group -> mask -> masked tag -> row."""
    table: dict[int, dict[int, dict[int, Row]]] = {}
    for spelled, row in _STANDARD.RepeatersDictionary.items():
        mask = int("".join("0" if digit in "xX" else "F" for digit in spelled), 16)
        tag = int(re.sub("[xX]", "0", spelled), 16)
        free = group = ~mask >> 16 & 0xFFFF
        while True:
            table.setdefault(tag >> 16 | group, {}).setdefault(mask, {})[tag] = row
            if not group:
                break
            group = (group - 1) & free
    return table


_REPEATING = _repeating()
_NONE: dict[int, dict[int, Row]] = {}


def _repeating_row(tag: int) -> Row | None:
    if tag & 0x10000:
        return None
    for mask, rows in _REPEATING.get(tag >> 16, _NONE).items():
        row = rows.get(tag & mask)
        if row is not None:
            return row
    return None


@cache
def _private() -> dict[str, dict[str, Row]]:
    """Private creator -> tag, perhaps with "xx" in place of its block -> row. Few processes need it."""
    tables: dict[str, dict[str, Row]] = _tables("_private_dict").private_dictionaries
    return tables


def tag_of(name: str) -> str | None:
    """The tag of a keyword ("PatientID") or of eight hex digits in any case; else None."""
    if _HEX.fullmatch(name):
        return name.upper()
    tag = _TAGS.get(name) if name else None  # some retired rows have no keyword
    return None if tag is None else f"{tag:08X}"


def keyword_of(tag: str) -> str:
    """The keyword of a tag; "" for private and unknown tags."""
    number = int(tag, 16)
    row = _STANDARD.DicomDictionary.get(number) or _repeating_row(number)
    return row[_KEYWORD] if row else ""


def attribute_names() -> Iterator[tuple[str, str]]:
    """Yields (tag, name) of all standard attributes; `x` in a tag stands for any digit ("60xx0010")."""
    for tag, row in _STANDARD.DicomDictionary.items():
        yield f"{tag:08X}", row[_NAME]
    for spelled, row in _STANDARD.RepeatersDictionary.items():
        yield spelled, row[_NAME]


def vr_of(tag: str) -> str | None:
    """The VR of a standard tag, of an ambiguous one the first ("US or SS" is US). None if unknown."""
    vr = vr_of_number(int(tag, 16))
    return None if vr is None else vr[:2]


def vr_of_number(tag: int) -> str | None:
    """The VR of the dictionary, which may be "US or SS". None for an unknown or private tag."""
    vr = _VRS.get(tag)
    if vr is None and not tag & 0x10000:
        if not tag & 0xFFFF:
            return "UL"  # group length, PS3.5 7.2
        row = _repeating_row(tag)
        vr = row[_VR] if row else None
    return vr


def holds_several(tag: str) -> bool:
    """Whether a standard attribute has a value multiplicity above 1 (PS3.6)."""
    row = _STANDARD.DicomDictionary.get(int(tag, 16))
    return row is not None and row[_VM] != "1"


def private_vr(tag: int, creator: str) -> str | None:
    """The VR of a private element in pydicom's private dictionary, by its private creator; else None."""
    rows = _private().get(creator, {})
    key = f"{tag:08X}"
    group, element = key[:4], key[6:]
    row = rows.get(key) or rows.get(f"{group}xx{element}") or rows.get(f"{group[:2]}xxxx{element}")
    return row[_VR] if row else None
