"""Converts DICOM JSON text to the Native DICOM Model (PS3.19 A.1) and back, in bounded memory.

Strategy: `native_xml` reads the JSON of a stored instance attribute by attribute, long sequences item by item
(json/text.py), and writes a DicomAttribute element for each. In `json_text` expat calls back for each tag. A
complete attribute becomes a member of the JSON text at once, and items become open brackets. So only the open
elements are in memory. Values stay text, because readers of the JSON take numbers as text too (PS3.18 F.2.3).

Rules of writing (A.1.5)
- Each value has a Value or PersonName, numbered from 1. An empty one among several is an empty element.
- A private element is (gggg,00ee) with the name of its private creator. Private creators are written too,
  so that the blocks are known. A private element without a creator keeps its tag.
- XML has no control characters but tab and line ends (XML 1.0 2.2): others become U+FFFD. A carriage
  return is a character reference, because a parser would replace it with a line feed.
- `xml:space="preserve"` stands on the root, and there is no blank between elements.

Rules of reading
- A private element (gggg,00ee) gets the block of its private creator. If the document has no such creator
  element, the reader makes one in a free block.
- A document type declaration is refused: its entities may grow without end, and the model has none.
- Namespaces are ignored. Unknown elements are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from xml.parsers import expat

from streamsrv.dicom.instance import JsonDataset, JsonElement
from streamsrv.dicom.json.text import LARGE, JsonReader
from streamsrv.dicom.tags import keyword_of
from streamsrv.errors import InstanceRefused, NotDicom

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
        return f'{start}<BulkData uri="{quoted(element["BulkDataURI"])}"/></DicomAttribute>'
    if "InlineBinary" in element:
        return f"{start}<InlineBinary>{element['InlineBinary']}</InlineBinary></DicomAttribute>"
    return f"{start[:-1]}/>"


def _start(tag: str, vr: str, creators: Creators) -> str:
    creator = creators.get(tag[:6]) if tag[3] in "13579BDF" else None
    if not creator:
        return _known_start(tag, vr)
    return f'<DicomAttribute tag="{tag[:4]}00{tag[6:]}" vr="{vr}" privateCreator="{quoted(creator)}">'


@lru_cache(maxsize=8_192)
def _known_start(tag: str, vr: str) -> str:
    keyword = keyword_of(tag)
    named = f' keyword="{keyword}"' if keyword else ""
    return f'<DicomAttribute tag="{tag}" vr="{vr}"{named}>'


def _value(number: int, value: Any) -> str:
    text = "" if value is None else escaped(value) if isinstance(value, str) else repr(value)
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
    return "".join(f"<{name}>{escaped(part)}</{name}>" for name, part in parts)


_VALUES = {"SQ": _item, "PN": _person_name}


def escaped(text: str) -> str:
    """Text as the content of an element."""
    return text.translate(_ESCAPES) if _SPECIAL.search(text) else text


def quoted(text: str) -> str:
    """Text as the value of an attribute in double quotes."""
    return text.translate(_QUOTED_ESCAPES)


# Reading

# Characters of one value. Names and texts have at most 10 kB by their VR; long binary values are bulk data.
MAX_TEXT = 16 << 20
MAX_DEPTH = 64
MAX_VALUES = 1 << 20  # of one attribute
_BLOCKS = range(0x10, 0x100)

# Element -> the elements that it may contain.
_INSIDE = {
    "": {"NativeDicomModel"},
    "NativeDicomModel": {"DicomAttribute"},
    "Item": {"DicomAttribute"},
    "DicomAttribute": {"Value", "Item", "PersonName", "BulkData", "InlineBinary"},
    "PersonName": set(NAME_GROUPS),
    **{group: set(NAME_COMPONENTS) for group in NAME_GROUPS},
}


class _Dataset:
    """An open model or item. `blocks` are its private blocks; with `filled` a comma is next."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[str, str], str] = {}
        self.filled = False


class _Attribute:
    def __init__(self, tag: str, vr: str, creator: str | None) -> None:
        self.tag = tag
        self.vr = vr
        self.creator = creator
        self.content: dict[str, Any] = {}
        self.items = 0


class _Model:
    """Callbacks of expat. `out` holds complete pieces of JSON text."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._open = [""]
        self._datasets: list[_Dataset] = []
        self._attributes: list[_Attribute] = []
        self._text: list[str] = []
        self._length = 0
        self._name: dict[str, list[str]] = {}

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        if name not in _INSIDE.get(self._open[-1], ()):
            raise NotDicom(f"no Native DICOM Model: {name[:40]} inside {self._open[-1] or 'nothing'}")
        self._open.append(name)
        self._text, self._length = [], 0
        begin = getattr(self, f"_begin_{name.lower()}", None)
        if begin:
            begin(attributes)

    def end(self, name: str) -> None:
        name = self._open.pop()
        finish = getattr(self, f"_end_{name.lower()}", None)
        if finish:
            finish()
        elif name in NAME_COMPONENTS:
            parts = self._name[self._open[-1]]
            place = NAME_COMPONENTS.index(name)
            parts += [""] * (place + 1 - len(parts))
            parts[place] = "".join(self._text)
        self._text, self._length = [], 0

    def text(self, text: str) -> None:
        self._text.append(text)
        self._length += len(text)
        if self._length > MAX_TEXT:
            raise InstanceRefused(f"a value of more than {MAX_TEXT:,} characters in the XML metadata")

    # Datasets

    def _begin_nativedicommodel(self, attributes: dict[str, str]) -> None:
        self._datasets.append(_Dataset())
        self.out.append("{")

    def _end_nativedicommodel(self) -> None:
        self._datasets.pop()
        self.out.append("}")

    def _begin_item(self, attributes: dict[str, str]) -> None:
        sequence = self._attributes[-1]
        if len(self._datasets) > MAX_DEPTH:
            raise NotDicom(f"sequences nest deeper than {MAX_DEPTH} levels")
        if not sequence.items:
            self._member(self._tag(sequence), '{"vr":"SQ","Value":[')
        sequence.items += 1
        self.out.append("," * (sequence.items > 1))
        self._begin_nativedicommodel(attributes)

    _end_item = _end_nativedicommodel

    # Attributes

    def _begin_dicomattribute(self, attributes: dict[str, str]) -> None:
        tag = attributes.get("tag", "")
        self._attributes.append(
            _Attribute(tag.upper(), attributes.get("vr", ""), attributes.get("privateCreator"))
        )

    def _end_dicomattribute(self) -> None:
        attribute = self._attributes.pop()
        if attribute.items:
            self.out.append("]}")
            return
        tag = self._tag(attribute)
        vr = {"vr": attribute.vr} if attribute.vr else {}
        self._member(tag, json.dumps({**vr, **attribute.content}))
        values = attribute.content.get("Value")
        if attribute.creator is None and tag[4:6] == "00" and values and isinstance(values[0], str):
            self._datasets[-1].blocks.setdefault((tag[:4], values[0].strip(" ")), tag[6:])

    def _member(self, tag: str, text: str) -> None:
        dataset = self._datasets[-1]
        self.out.append(f"{',' * dataset.filled}{json.dumps(tag)}:{text}")
        dataset.filled = True

    def _tag(self, attribute: _Attribute) -> str:
        """The tag with the block of a private element."""
        tag, creator = attribute.tag, attribute.creator
        if creator is None or tag[4:6] != "00":
            return tag
        blocks = self._datasets[-1].blocks
        block = blocks.get((tag[:4], creator.strip(" ")))
        if block is None:
            used = {each for (group, _), each in blocks.items() if group == tag[:4]}
            block = next((f"{each:02X}" for each in _BLOCKS if f"{each:02X}" not in used), "")
            if not block:
                raise NotDicom("more private creators than a group has blocks", tag=tag)
            blocks[tag[:4], creator.strip(" ")] = block
            self._member(f"{tag[:4]}00{block}", json.dumps({"vr": "LO", "Value": [creator]}))
        return f"{tag[:4]}{block}{tag[6:]}"

    # Values

    def _begin_value(self, attributes: dict[str, str]) -> None:
        """Adds empty values where the numbers of the document leave a gap."""
        number = attributes.get("number", "")
        values = self._attributes[-1].content.setdefault("Value", [])
        place = int(number) if number.isdecimal() and len(number) < 9 else len(values) + 1
        if max(place, len(values)) > MAX_VALUES:
            raise InstanceRefused(f"an attribute of more than {MAX_VALUES:,} values")
        values += [None] * (place - 1 - len(values))

    def _end_value(self) -> None:
        self._attributes[-1].content["Value"].append("".join(self._text) or None)

    def _begin_personname(self, attributes: dict[str, str]) -> None:
        self._begin_value(attributes)
        self._name = {}

    def _end_personname(self) -> None:
        groups = {
            group: "^".join(parts) for group, parts in self._name.items() if len(parts) > 1 or any(parts)
        }
        self._attributes[-1].content["Value"].append(groups or None)

    def _begin_alphabetic(self, attributes: dict[str, str]) -> None:
        self._name[self._open[-1]] = []

    _begin_ideographic = _begin_phonetic = _begin_alphabetic

    def _begin_bulkdata(self, attributes: dict[str, str]) -> None:
        self._attributes[-1].content["BulkDataURI"] = attributes.get("uri") or attributes.get("uuid") or ""

    def _end_inlinebinary(self) -> None:
        self._attributes[-1].content["InlineBinary"] = "".join("".join(self._text).split())


# Encodings that expat reads without Python.
_ENCODINGS = frozenset(("UTF-8", "UTF-16", "ISO-8859-1", "US-ASCII"))


def _refuse_doctype(*arguments: object) -> None:
    raise NotDicom("the XML metadata has a document type declaration")


def _check_declaration(version: str, encoding: str | None, standalone: int) -> None:
    """Refuses encodings for which expat would call Python, whose errors have other types."""
    if encoding is not None and encoding.upper() not in _ENCODINGS:
        raise NotDicom(f"the XML metadata are in {encoding[:40]}, not in UTF-8")


def json_text(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The dataset of the document as DICOM JSON text. Raises NotDicom and InstanceRefused."""
    model = _Model()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = model.start
    parser.EndElementHandler = model.end
    parser.CharacterDataHandler = model.text
    parser.XmlDeclHandler = _check_declaration
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        for piece in pieces:
            parser.Parse(piece, False)
            if model.out:
                yield "".join(model.out).encode()
                model.out.clear()
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise NotDicom(f"the XML metadata cannot be read: {error}") from None
    yield "".join(model.out).encode()
