"""Converts DICOM JSON text to the Native DICOM Model (PS3.19 A.1), in bounded memory.

Strategy: it reads the JSON of a stored instance attribute by attribute, long sequences item by item
(json/text.py). Each attribute becomes one DicomAttribute element. The text leaves in pieces.

Rules (A.1.5)
- Each value has a Value or PersonName, numbered from 1. An empty one among several is an empty element.
- A private element is (gggg,00ee) with the name of its private creator. Private creators are written too,
  so that the blocks are known. A private element without a creator keeps its tag.
- XML has no control characters but tab and line ends (XML 1.0 2.2): others become U+FFFD. A carriage
  return is a character reference, because a parser would replace it with a line feed.
- `xml:space="preserve"` stands on the root, and there is no blank between elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.dicom.tags import keyword_of

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
NAME_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
PIECE = 64 * 1024

_HEAD = f'<?xml version="1.0" encoding="UTF-8"?>\n<NativeDicomModel xmlns="{NAMESPACE}" xml:space="preserve">'
_TAIL = "</NativeDicomModel>"
_SPECIAL = re.compile(r"[&<>\x00-\x1f\ufffe\uffff]")
_ESCAPES = {
    **{code: "\ufffd" for code in (*range(0x20), 0xFFFE, 0xFFFF) if code not in (9, 10, 13)},
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    13: "&#13;",
}
_QUOTED_ESCAPES = {**_ESCAPES, ord('"'): "&quot;", 9: "&#9;", 10: "&#10;"}

# Digits of group and block -> private creator
Creators = dict[str, str]


def native_xml(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The document of the dataset with the DICOM JSON text `pieces`, in pieces of about 64 kB."""
    parts, length = [_HEAD], 0
    for text in _dataset(JsonReader(pieces)):
        parts.append(text)
        length += len(text)
        if length > PIECE:
            yield "".join(parts).encode()
            parts, length = [], 0
    yield "".join([*parts, _TAIL]).encode()


def _dataset(reader: JsonReader) -> Iterator[str]:
    whole = reader.value()
    if whole is not LARGE:
        yield _attributes(whole)
        return
    creators: Creators = {}
    for tag in reader.members():
        element = reader.value()
        if element is LARGE:
            yield from _long_attribute(reader, tag, creators)
        else:
            yield _attribute(tag, element, creators)


def _long_attribute(reader: JsonReader, tag: str, creators: Creators) -> Iterator[str]:
    vr, written = "", False
    for name in reader.members():
        if name == "vr":
            vr = reader.value()
            continue
        written = True
        if vr == "SQ":
            yield _start(tag, vr, creators)
            for number, _ in enumerate(reader.elements(), 1):
                yield f'<Item number="{number}">'
                yield from _dataset(reader)
                yield "</Item>"
            yield "</DicomAttribute>"
        else:
            yield _attribute(tag, {"vr": vr, name: reader.value(None)}, creators)
    if not written:
        yield _attribute(tag, {"vr": vr}, creators)


def _attributes(dataset: JsonDataset) -> str:
    creators: Creators = {}
    return "".join([_attribute(tag, element, creators) for tag, element in dataset.items()])


def _attribute(tag: str, element: JsonElement, creators: Creators) -> str:
    if tag[3] in "13579BDF" and tag[4:6] == "00" and tag[6] != "0":
        creators[tag[:4] + tag[6:]] = str(element.get("Value", [""])[0] or "").strip(" ")
    start = _start(tag, element["vr"], creators)
    if "Value" in element:
        write = _VALUES.get(element["vr"], _value)
        values = "".join([write(number, value) for number, value in enumerate(element["Value"], 1)])
        return f"{start}{values}</DicomAttribute>"
    if "BulkDataURI" in element:
        return f'{start}<BulkData uri="{_quoted(element["BulkDataURI"])}"/></DicomAttribute>'
    if "InlineBinary" in element:
        return f"{start}<InlineBinary>{element['InlineBinary']}</InlineBinary></DicomAttribute>"
    return f"{start[:-1]}/>"


def _start(tag: str, vr: str, creators: Creators) -> str:
    creator = creators.get(tag[:6]) if tag[3] in "13579BDF" else None
    if not creator:
        return _known_start(tag, vr)
    return f'<DicomAttribute tag="{tag[:4]}00{tag[6:]}" vr="{vr}" privateCreator="{_quoted(creator)}">'


@lru_cache(maxsize=8_192)
def _known_start(tag: str, vr: str) -> str:
    keyword = keyword_of(tag)
    named = f' keyword="{keyword}"' if keyword else ""
    return f'<DicomAttribute tag="{tag}" vr="{vr}"{named}>'


def _value(number: int, value: Any) -> str:
    text = "" if value is None else _escaped(value) if isinstance(value, str) else repr(value)
    return f'<Value number="{number}">{text}</Value>'


def _item(number: int, value: Any) -> str:
    return f'<Item number="{number}">{_attributes(value or {})}</Item>'


def _person_name(number: int, value: Any) -> str:
    groups = "".join(
        f"<{group}>{_components(value[group])}</{group}>" for group in NAME_GROUPS if group in (value or {})
    )
    return f'<PersonName number="{number}">{groups}</PersonName>'


def _components(text: str) -> str:
    """The fifth component keeps everything behind it."""
    parts = zip(NAME_COMPONENTS, text.split("^", len(NAME_COMPONENTS) - 1), strict=False)
    return "".join(f"<{name}>{_escaped(part)}</{name}>" for name, part in parts)


_VALUES = {"SQ": _item, "PN": _person_name}


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES) if _SPECIAL.search(text) else text


def _quoted(text: str) -> str:
    return text.translate(_QUOTED_ESCAPES)
