"""Encodes DICOM JSON text (PS3.18 Annex F) as Explicit VR Little Endian (PS3.5 A.2), in bounded memory.

Strategy: it reads the text attribute by attribute, long sequences item by item (json/text.py), and yields
pieces: bytes, and `Copy` pieces that name bulk data in their source. Sequences and items have undefined
length, so no length is needed in advance. The caller resolves a BulkDataURI. An encapsulated value
becomes fragments behind an offset table (A.4).

Rules
- The attributes of a short dataset may have any order. Those of a dataset that is read in steps must
  ascend, as F.2.2 demands.
- JSON text is UTF-8. If it is ASCII the dataset keeps its Specific Character Set, else it gets ISO_IR
  192. Items inherit it and have none of their own.
- Group 0002 is no part of a dataset and becomes `facts`. Group lengths are left out.
- Numbers may be text (F.2.3). A DS has at most 16 characters, so longer numbers are rounded. A value that
  the VR cannot have raises NotDicom.
"""

from __future__ import annotations

import binascii
import re
import struct
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from streamsrv.dicom import tags
from streamsrv.dicom.elements import BINARY_VRS, LONG_VRS, SHORT_VRS, UNDEFINED
from streamsrv.dicom.explicit import (
    ITEM_DELIMITER,
    ITEM_HEAD,
    LONGEST,
    SEQUENCE_DELIMITER,
    Copy,
    element_head,
    fragments,
    padding,
    whole_element,
)
from streamsrv.dicom.json.text import AMBIGUOUS, LARGE, JsonReader
from streamsrv.dicom.values import NUMBERS
from streamsrv.errors import InstanceRefused, NotDicom

MAX_DEPTH = 64
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
# PS3.5 6.2: VRs in the Specific Character Set.
_TEXT_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_VRS = frozenset((*SHORT_VRS.values(), *LONG_VRS.values()))
_NO_ARRAY = "the value of an attribute is no array"
_FACTS = frozenset((tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.AVAILABLE_TRANSFER_SYNTAX_UID))
_TABLES = frozenset((tags.EXTENDED_OFFSET_TABLE, tags.EXTENDED_OFFSET_TABLE_LENGTHS))


@dataclass(slots=True)
class Later:
    """A piece whose bytes are known only at the end of the dataset."""

    content: bytes = b""


Piece = bytes | Copy | Later


@dataclass(frozen=True, slots=True)
class Bulk:
    """The bytes of a BulkDataURI: a range for each part. With `frames` these are frames of compressed
    pixels, which become fragments."""

    ranges: Sequence[Copy]
    frames: bool = False

    @property
    def length(self) -> int:
        return sum(each.length for each in self.ranges)


# (tag path, BulkDataURI) -> its bytes; raises InstanceError if there are none
Resolve = Callable[[str, str], Bulk]


class DatasetEncoder:
    """Encodes one dataset. Then `facts` holds the UIDs for the file meta information, by tag."""

    def __init__(self, resolve: Resolve) -> None:
        self.facts: dict[str, str] = {}
        self._resolve = resolve
        self._character_set = Later()
        self._placed = False
        self._own_set = b""  # the Specific Character Set of the JSON
        self._ascii = True
        self._tables: list[
            Piece
        ] = []  # offset tables of the JSON, until Pixel Data show whether they are valid
        self._depth = 0

    def pieces(self, reader: JsonReader) -> Iterator[Piece]:
        """Raises NotDicom and InstanceRefused."""
        for tag, element in _members(reader, reader.value()):
            yield from self._top_level(reader, tag, element)
        if not self._placed:
            yield self._character_set
        yield from self._tables
        utf8 = whole_element(int(tags.SPECIFIC_CHARACTER_SET, 16), "CS", b"ISO_IR 192")
        self._character_set.content = self._own_set if self._ascii else utf8

    def _top_level(self, reader: JsonReader, tag: str, element: Any) -> Iterator[Piece]:
        if tag > tags.SPECIFIC_CHARACTER_SET and not self._placed:
            self._placed = True
            yield self._character_set
        fact = tag in _FACTS or tag.startswith("0002")
        if element is LARGE and (fact or tag == tags.SPECIFIC_CHARACTER_SET):
            element = reader.value(None)
            _checked(tag, element)
        if fact:
            stated = next(iter(_array(tag, element.get("Value"))), None)
            self.facts[tag] = stated.strip(" \0") if isinstance(stated, str) else ""
        if tag == tags.SPECIFIC_CHARACTER_SET:
            self._own_set = self._element_bytes(tag, element)
        elif tag in _TABLES:
            self._tables += self._attribute(reader, tag, element, tag)
        else:
            if tag >= tags.FLOAT_PIXEL_DATA and self._tables:
                yield from self._offset_tables(tag, element)
            yield from self._attribute(reader, tag, element, tag)

    def _offset_tables(self, tag: str, element: Any) -> Iterator[Piece]:
        """Yields the tables of the JSON, unless Pixel Data become fragments, which have their own
        tables."""
        tables, self._tables = self._tables, []
        uri = element.get("BulkDataURI") if element is not LARGE else None
        if not (tag == tags.PIXEL_DATA and isinstance(uri, str) and self._resolve(tag, uri).frames):
            yield from tables

    def _attribute(self, reader: JsonReader, tag: str, element: Any, path: str) -> Iterator[Piece]:
        if tag.startswith(("0000", "0002")) or tag.endswith("0000"):
            if element is LARGE:
                reader.skip()
        elif tag.startswith("FFFE"):
            raise NotDicom("a delimiter is no attribute", tag=tag)
        elif element is LARGE:
            yield from self._long_attribute(reader, tag, path)
        elif "BulkDataURI" in element:
            uri = element["BulkDataURI"]
            if not isinstance(uri, str):
                raise NotDicom("BulkDataURI is no text", tag=tag)
            yield from self._bulk(tag, _vr(tag, element), uri, path)
        elif _vr(tag, element) == "SQ":
            yield from self._sequence(tag, element.get("Value"), path)
        else:
            yield self._element_bytes(tag, element)

    def _long_attribute(self, reader: JsonReader, tag: str, path: str) -> Iterator[Piece]:
        """Encodes an attribute with a long text. It reads a sequence item by item."""
        rest: dict[str, Any] = {}
        done = False
        for name in reader.members():
            if name in rest or (done and name == "Value"):
                raise NotDicom("an attribute is an object in which a name occurs twice", tag=tag)
            if name == "Value" and _vr(tag, rest) == "SQ":
                _expect(reader, "[", _NO_ARRAY, tag)
                yield element_head(int(tag, 16), "SQ", UNDEFINED)
                for number, _ in enumerate(reader.elements()):
                    yield from self._item(reader, reader.value(), f"{path}/{number}", tag)
                yield SEQUENCE_DELIMITER
                done = True
            else:
                rest[name] = reader.value(None)
        if not done:
            yield from self._attribute(reader, tag, rest, path)

    def _sequence(self, tag: str, items: Any, path: str) -> Iterator[Piece]:
        yield element_head(int(tag, 16), "SQ", UNDEFINED)
        for number, item in enumerate(_array(tag, items)):
            yield from self._item(_NO_READER, item, f"{path}/{number}", tag)
        yield SEQUENCE_DELIMITER

    def _item(self, reader: JsonReader, item: Any, path: str, tag: str) -> Iterator[Piece]:
        """Encodes an item of the sequence `tag`; of a LARGE one `reader` reads the attributes."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotDicom(f"sequences nest deeper than {MAX_DEPTH} levels")
        yield ITEM_HEAD
        for each, element in _members(reader, {} if item is None else item, tag):
            if each != tags.SPECIFIC_CHARACTER_SET:
                yield from self._attribute(reader, each, element, f"{path}/{each}")
        yield ITEM_DELIMITER
        self._depth -= 1

    # Bulk data

    def _bulk(self, tag: str, vr: str, uri: str, path: str) -> Iterator[Piece]:
        bulk = self._resolve(path, uri)
        if bulk.frames and path == tags.PIXEL_DATA:
            yield from fragments(bulk.ranges)
            return
        length = bulk.length
        if length > LONGEST:
            raise InstanceRefused("a bulk value is longer than an element can be", tag=tag)
        yield element_head(int(tag, 16), vr, length + length % 2)
        yield from bulk.ranges
        yield padding(vr, length)

    # Values

    def _element_bytes(self, tag: str, content: Any) -> bytes:
        vr = _vr(tag, content)
        inline = content.get("InlineBinary")
        if inline is not None:
            return whole_element(int(tag, 16), vr, inline_bytes(tag, inline))
        value = value_bytes(tag, vr, _array(tag, content.get("Value")))
        self._ascii = self._ascii and (vr not in _TEXT_VRS or value.isascii())
        return whole_element(int(tag, 16), vr, value)


_NO_READER = JsonReader(())


# Reading


def _members(reader: JsonReader, dataset: Any, sequence: str = "") -> Iterator[tuple[str, Any]]:
    """(tag, element) of a dataset or of an item of `sequence`, in ascending order. `reader` reads a LARGE
    dataset, and returns LARGE elements, which the caller has to read."""
    if dataset is not LARGE:
        yield from _sorted(dataset, sequence)
        return
    _expect(reader, "{", "a dataset is no JSON object")
    last = ""
    for name in reader.members():
        element = reader.value()
        tag = _checked(name, element)
        if element is LARGE:
            _expect(reader, "{", "an attribute is no JSON object", tag)
        if tag <= last:
            raise NotDicom("the attributes of a long JSON dataset do not ascend", tag=tag)
        last = tag
        yield tag, element


def _expect(reader: JsonReader, opening: str, otherwise: str, tag: str | None = None) -> None:
    if reader.peek() != opening:
        raise NotDicom(otherwise, tag=tag)


def _sorted(dataset: Any, tag: str) -> list[tuple[str, Any]]:
    if not isinstance(dataset, dict):
        raise NotDicom(f"a dataset is {_no_object(dataset)}", tag=tag or None)
    found = [(_checked(name, element), element) for name, element in dataset.items()]
    found.sort(key=lambda each: each[0])
    for (one, _), (other, _) in pairwise(found):
        if one == other:
            raise NotDicom("an attribute occurs twice in a dataset", tag=one)
    return found


def _checked(name: str, element: Any) -> str:
    if not _TAG.fullmatch(name):
        raise NotDicom(f"{name[:40]!r} is not the tag of an attribute: eight hex digits")
    if element is not LARGE and not isinstance(element, dict):
        raise NotDicom(f"an attribute is {_no_object(element)}", tag=name.upper())
    return name.upper()


def _no_object(value: Any) -> str:
    return "an object in which a name occurs twice" if value is AMBIGUOUS else "no JSON object"


def _array(tag: str, values: Any) -> list[Any]:
    if values is not None and not isinstance(values, list):
        raise NotDicom(_NO_ARRAY, tag=tag)
    return values or []


def _vr(tag: str, element: dict[str, Any]) -> str:
    """The VR of the JSON, else that of the dictionary."""
    stated = element.get("vr")
    vr = (tags.vr_of(tag) or "UN") if stated is None or stated == "" else stated
    if not isinstance(vr, str) or vr not in _VRS:
        raise NotDicom(f"{str(vr)[:10]!r} is not a value representation", tag=tag)
    return vr


_DS_LENGTH = 16


def value_bytes(tag: str, vr: str, values: list[Any]) -> bytes:
    """Little endian bytes (PS3.5 6.2), with text in UTF-8, without padding."""
    try:
        if vr in NUMBERS:
            return _numbers(vr, values)
        if vr == "AT":
            return b"".join(struct.pack("<HH", *divmod(int(each, 16), 0x10000)) for each in values)
        if vr in BINARY_VRS and values:
            raise ValueError("a binary value is no list of values")
        return "\\".join(_TEXTS.get(vr, _text)(each) for each in values).encode()
    except (ValueError, TypeError, AttributeError, struct.error, OverflowError):
        raise NotDicom(f"a value that no {vr} can have", tag=tag) from None


def inline_bytes(tag: str, inline: Any) -> bytes:
    try:
        return b64decode(inline, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise NotDicom("InlineBinary is not base64", tag=tag) from None


def _numbers(vr: str, values: list[Any]) -> bytes:
    code, _ = NUMBERS[vr]
    read: Callable[[Any], float] = float if vr[0] == "F" else _integer
    return struct.pack(f"<{len(values)}{code}", *map(read, values))


def _integer(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and number != value):
        raise ValueError("not a whole number")
    return number


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _integer_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(_integer(value))


def _decimal_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    text = repr(value + 0)  # a bool is no number
    digits = _DS_LENGTH
    while len(text) > _DS_LENGTH:
        text = f"{value:.{digits}g}"
        digits -= 1
    return text


def _name(value: Any) -> str:
    """The component groups without trailing empty ones."""
    if value is None or isinstance(value, str):
        return value or ""
    groups = [_text(value.get(group)) for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


_TEXTS: dict[str, Callable[[Any], str]] = {"IS": _integer_text, "DS": _decimal_text, "PN": _name}
