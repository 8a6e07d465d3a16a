"""DICOM JSON text (PS3.18 Annex F) to a dataset in Explicit VR Little Endian (PS3.5 A.2), in bounded memory.

Strategy: the text is read attribute by attribute, long sequences item by item (jsontext.py), and leaves as
pieces: bytes, and `Copy` pieces that name bulk data where they lie. Sequences and items have undefined
length, so nothing has to be known beforehand. What Pixel Data are made of is asked of whoever has the bulk
data; an encapsulated value becomes fragments behind an offset table (A.4).

Rules
- Short datasets may be in any order; those that are read in steps must ascend, as F.2.2 demands.
- Text is UTF-8 in JSON. If it is ASCII the dataset keeps its Specific Character Set, else it says ISO_IR 192;
  items inherit it and have none of their own.
- Group 0002 is no part of a dataset: it is kept as facts. Group lengths are left out.
- Numbers may be given as text (F.2.3). A DS has 16 characters at most (PS3.5 6.2): digits beyond are rounded.
"""

from __future__ import annotations

import binascii
import re
import struct
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from streamsrv.dicom import tags
from streamsrv.dicom.elements import BINARY_VRS, LONG_VRS, SHORT_VRS
from streamsrv.dicom.explicit import Copy
from streamsrv.dicom.jsontext import LARGE, JsonReader
from streamsrv.dicom.values import NUMBERS
from streamsrv.errors import InstanceRefused, NotDicom

MAX_DEPTH = 64
# PS3.5 7.1: lengths are even and 0xFFFFFFFF means undefined.
LONGEST = 0xFFFFFFFE
LONGEST_SHORT = 0xFFFE

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_VRS = frozenset((*SHORT_VRS.values(), *LONG_VRS.values()))
_SHORT = frozenset(SHORT_VRS.values())
_NUL_PADDED = frozenset(("UI", *BINARY_VRS))
_FACTS = frozenset((tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.AVAILABLE_TRANSFER_SYNTAX_UID))
_TABLES = frozenset((tags.EXTENDED_OFFSET_TABLE, tags.EXTENDED_OFFSET_TABLE_LENGTHS))
_ITEM, _ITEM_END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_DS_LENGTH = 16

_short = struct.Struct("<HH2sH").pack
_long = struct.Struct("<HH2sHI").pack
_item = struct.Struct("<HHI").pack


@dataclass(slots=True)
class Later:
    """A piece whose bytes are known only when the dataset has been read."""

    content: bytes = b""


Piece = bytes | Copy | Later


@dataclass(frozen=True, slots=True)
class Bulk:
    """Where the bytes of a BulkDataURI lie: a range for each part. `frames` if they are frames of compressed
    pixels, which then become fragments."""

    ranges: Sequence[Copy]
    frames: bool = False

    @property
    def length(self) -> int:
        return sum(each.length for each in self.ranges)


# (tag path, BulkDataURI) -> its bytes; raises InstanceError where there are none
Resolve = Callable[[str, str], Bulk]


class DatasetEncoder:
    """Encodes one dataset. Afterwards `facts` holds the UIDs that the file meta information needs, by tag."""

    def __init__(self, resolve: Resolve) -> None:
        self.facts: dict[str, str] = {}
        self._resolve = resolve
        self._character_set = Later()
        self._placed = False
        self._own_set = b""  # the Specific Character Set of the JSON
        self._ascii = True
        self._tables: list[Piece] = []  # offset tables of the JSON, until Pixel Data show whether they hold
        self._depth = 0

    def pieces(self, reader: JsonReader) -> Iterator[Piece]:
        """Raises NotDicom and InstanceRefused."""
        last = ""
        for tag, element in _members(reader):
            if tag <= last:
                raise NotDicom("the attributes of a long JSON dataset do not ascend", tag=tag)
            last = tag
            yield from self._top_level(reader, tag, element)
        if not self._placed:
            yield self._character_set
        yield from self._tables
        utf8 = self._encoded(tags.SPECIFIC_CHARACTER_SET, "CS", ["ISO_IR 192"])
        self._character_set.content = self._own_set if self._ascii else utf8

    def _top_level(self, reader: JsonReader, tag: str, element: Any) -> Iterator[Piece]:
        if tag > tags.SPECIFIC_CHARACTER_SET and not self._placed:
            self._placed = True
            yield self._character_set
        fact = tag in _FACTS or tag.startswith("0002")
        if element is LARGE and (fact or tag == tags.SPECIFIC_CHARACTER_SET):
            element = reader.value(None)
        if fact:
            values = element.get("Value") or [""]
            self.facts[tag] = str(values[0]).strip(" \0")
        if tag == tags.SPECIFIC_CHARACTER_SET:
            self._own_set = b"".join(self._element_bytes(tag, element))
        elif tag in _TABLES:
            self._tables += self._attribute(reader, tag, element, tag)
        else:
            if tag >= tags.FLOAT_PIXEL_DATA and self._tables:
                yield from self._offset_tables(tag, element)
            yield from self._attribute(reader, tag, element, tag)

    def _offset_tables(self, tag: str, element: Any) -> Iterator[Piece]:
        """Those of the JSON, unless fragments are about to be made, which bring their own."""
        tables, self._tables = self._tables, []
        uri = element.get("BulkDataURI") if element is not LARGE else None
        if not (tag == tags.PIXEL_DATA and isinstance(uri, str) and self._resolve(tag, uri).frames):
            yield from tables

    def _attribute(self, reader: JsonReader, tag: str, element: Any, path: str) -> Iterator[Piece]:
        if tag.startswith(("0000", "0002")) or tag.endswith("0000"):
            if element is LARGE:
                _skip(reader)
        elif tag.startswith("FFFE"):
            raise NotDicom("a delimiter is no attribute", tag=tag)
        elif element is LARGE:
            yield from self._long_attribute(reader, tag, path)
        elif "BulkDataURI" in element:
            yield from self._bulk(tag, _vr(tag, element), str(element["BulkDataURI"]), path)
        elif _vr(tag, element) == "SQ":
            yield from self._sequence(tag, element.get("Value"), path)
        else:
            yield from self._element_bytes(tag, element)

    def _long_attribute(self, reader: JsonReader, tag: str, path: str) -> Iterator[Piece]:
        """One whose text is long: a sequence is read item by item."""
        rest: dict[str, Any] = {}
        done = False
        for name in reader.members():
            if name == "Value" and _vr(tag, rest) == "SQ":
                yield _head(tag, "SQ", 0xFFFFFFFF)
                for number, _ in enumerate(reader.elements()):
                    yield from self._item(self._members_of(reader, f"{path}/{number}"))
                yield _SEQUENCE_END
                done = True
            else:
                rest[name] = reader.value(None)
        if not done:
            yield from self._attribute(reader, tag, rest, path)

    def _members_of(self, reader: JsonReader, path: str) -> Iterator[Piece]:
        last = ""
        for tag, element in _members(reader):
            if tag <= last:
                raise NotDicom("the attributes of a long JSON item do not ascend", tag=tag)
            last = tag
            if tag != tags.SPECIFIC_CHARACTER_SET:
                yield from self._attribute(reader, tag, element, f"{path}/{tag}")

    def _sequence(self, tag: str, items: Any, path: str) -> Iterator[Piece]:
        yield _head(tag, "SQ", 0xFFFFFFFF)
        for number, item in enumerate(_array(tag, items)):
            yield from self._item(self._short_item(tag, item or {}, f"{path}/{number}"))
        yield _SEQUENCE_END

    def _short_item(self, tag: str, item: Any, path: str) -> Iterator[Piece]:
        for each, element in _sorted(item, tag):
            if each != tags.SPECIFIC_CHARACTER_SET:
                yield from self._attribute(_NO_READER, each, element, f"{path}/{each}")

    def _item(self, content: Iterator[Piece]) -> Iterator[Piece]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotDicom(f"sequences nest deeper than {MAX_DEPTH} levels")
        yield _ITEM
        yield from content
        yield _ITEM_END
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
        yield _head(tag, vr, length + length % 2)
        yield from bulk.ranges
        if length % 2:
            yield b"\0" if vr in _NUL_PADDED else b" "

    # Values

    def _element_bytes(self, tag: str, element: Any) -> Iterator[bytes]:
        vr = _vr(tag, element)
        inline = element.get("InlineBinary")
        if inline is not None:
            yield self._padded(tag, vr, _decoded(tag, inline))
            return
        yield self._encoded(tag, vr, _array(tag, element.get("Value")))

    def _encoded(self, tag: str, vr: str, values: list[Any]) -> bytes:
        try:
            if vr in NUMBERS:
                value = _numbers(vr, values)
            elif vr == "AT":
                value = b"".join(struct.pack("<HH", *divmod(int(each, 16), 0x10000)) for each in values)
            elif vr in BINARY_VRS and values:
                raise ValueError("a binary value is no list of values")
            else:
                text = "\\".join(_TEXTS.get(vr, _text)(each) for each in values)
                self._ascii = self._ascii and text.isascii()
                value = text.encode()
        except (ValueError, TypeError, AttributeError, struct.error, OverflowError):
            raise NotDicom(f"a value that no {vr} can have", tag=tag) from None
        return self._padded(tag, vr, value)

    def _padded(self, tag: str, vr: str, value: bytes) -> bytes:
        if len(value) % 2:
            value += b"\0" if vr in _NUL_PADDED else b" "
        return _head(tag, vr, len(value)) + value


_NO_READER = JsonReader(())


def fragments(ranges: Sequence[Copy]) -> Iterator[Piece]:
    """Pixel Data of one fragment a frame. The basic offset table counts in 32 bits; beyond, the extended one
    goes before Pixel Data (PS3.3 C.7.6.3.1.8) and the basic one is empty."""
    if any(each.length > LONGEST for each in ranges):
        raise InstanceRefused("a frame is longer than a fragment can be", tag=tags.PIXEL_DATA)
    offsets, at = [], 0
    for each in ranges:
        offsets.append(at)
        at += 8 + each.length + each.length % 2
    basic = b""
    if offsets[-1] <= LONGEST:
        basic = struct.pack(f"<{len(offsets)}I", *offsets)
    else:
        lengths = [each.length for each in ranges]
        for tag, table in (
            (tags.EXTENDED_OFFSET_TABLE, offsets),
            (tags.EXTENDED_OFFSET_TABLE_LENGTHS, lengths),
        ):
            yield _head(tag, "OV", 8 * len(table)) + struct.pack(f"<{len(table)}Q", *table)
    yield _head(tags.PIXEL_DATA, "OB", 0xFFFFFFFF) + _item(0xFFFE, 0xE000, len(basic)) + basic
    for each in ranges:
        yield _item(0xFFFE, 0xE000, each.length + each.length % 2)
        yield each
        if each.length % 2:
            yield b"\0"
    yield _SEQUENCE_END


# Reading


def _members(reader: JsonReader) -> Iterator[tuple[str, Any]]:
    """(tag, element) of the dataset that comes next, an element being LARGE where it is still to be read;
    those of a short dataset ascend."""
    whole = reader.value()
    if whole is not LARGE:
        yield from _sorted(whole, "")
        return
    for name in reader.members():
        element = reader.value()
        yield _checked(name, element), element


def _sorted(dataset: Any, tag: str) -> list[tuple[str, Any]]:
    if not isinstance(dataset, dict):
        raise NotDicom("a dataset is no JSON object", tag=tag or None)
    return sorted(
        ((_checked(name, element), element) for name, element in dataset.items()), key=lambda each: each[0]
    )


def _checked(name: str, element: Any) -> str:
    if not _TAG.fullmatch(name):
        raise NotDicom(f"{name[:40]!r} is not the tag of an attribute: eight hex digits")
    if element is not LARGE and not isinstance(element, dict):
        raise NotDicom("an attribute is no JSON object", tag=name.upper())
    return name.upper()


def _array(tag: str, values: Any) -> list[Any]:
    if values is not None and not isinstance(values, list):
        raise NotDicom("the value of an attribute is no array", tag=tag)
    return values or []


def _skip(reader: JsonReader) -> None:
    several = reader.members() if reader.peek() == "{" else reader.elements()
    for _ in several:
        if reader.value() is LARGE:
            _skip(reader)


def _vr(tag: str, element: dict[str, Any]) -> str:
    """Where the JSON has none, the dictionary's."""
    vr = element.get("vr") or tags.vr_of(tag) or "UN"
    if vr not in _VRS:
        raise NotDicom(f"{str(vr)[:10]!r} is not a value representation", tag=tag)
    return str(vr)


# Values to bytes


def _head(tag: str, vr: str, length: int) -> bytes:
    number = int(tag, 16)
    if vr in _SHORT:
        if length <= LONGEST_SHORT:
            return _short(number >> 16, number & 0xFFFF, vr.encode(), length)
        vr = "UN"  # PS3.5 6.2.2
    return _long(number >> 16, number & 0xFFFF, vr.encode(), 0, length)


def _decoded(tag: str, inline: Any) -> bytes:
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
    """The component groups, trailing empty ones left out."""
    if value is None or isinstance(value, str):
        return value or ""
    groups = [_text(value.get(group)) for group in ("Alphabetic", "Ideographic", "Phonetic")]
    return "=".join(groups).rstrip("=")


_TEXTS: dict[str, Callable[[Any], str]] = {"IS": _integer_text, "DS": _decimal_text, "PN": _name}
