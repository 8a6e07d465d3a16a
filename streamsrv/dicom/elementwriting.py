"""Elements in Explicit VR Little Endian (PS3.5 7.1.2), the fragments of compressed pixels (A.4), and the head
of a Part 10 file (PS3.10 7.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from streamsrv.dicom import tags
from streamsrv.dicom.elements import BINARY_VRS, SHORT_VRS
from streamsrv.dicom.explicit import Copy
from streamsrv.errors import InstanceRefused

# PS3.5 7.1: lengths are even, and 0xFFFFFFFF means undefined.
UNDEFINED = 0xFFFFFFFF
LONGEST = 0xFFFFFFFE
LONGEST_SHORT = 0xFFFE
ITEM, ITEM_END = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
# Who has made a file that came without a head of its own: this implementation (PS3.7 D.3.3.2). The UID is
# made from a UUID, which needs no registration (PS3.5 B.2).
IMPLEMENTATION_CLASS_UID = "2.25.1654476643511246558269671314570338076"
IMPLEMENTATION_VERSION_NAME = "STREAMSRV"

_SHORT = frozenset(SHORT_VRS.values())
_NUL_PADDED = frozenset(("UI", *BINARY_VRS))
_short = struct.Struct("<HH2sH").pack
_long = struct.Struct("<HH2sHI").pack
_fragment = struct.Struct("<HHI").pack


def element_head(tag: str, vr: str, length: int) -> bytes:
    """Tag, VR and length; a VR of 16-bit length that does not suffice becomes UN (PS3.5 6.2.2)."""
    number = int(tag, 16)
    if vr in _SHORT:
        if length <= LONGEST_SHORT:
            return _short(number >> 16, number & 0xFFFF, vr.encode(), length)
        vr = "UN"
    return _long(number >> 16, number & 0xFFFF, vr.encode(), 0, length)


def padding(vr: str, length: int) -> bytes:
    """What makes the length even."""
    return (b"\0" if vr in _NUL_PADDED else b" ") if length % 2 else b""


def whole_element(tag: str, vr: str, value: bytes) -> bytes:
    value += padding(vr, len(value))
    return element_head(tag, vr, len(value)) + value


def fragments(ranges: Sequence[Copy]) -> Iterator[bytes | Copy]:
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
        tables = (tags.EXTENDED_OFFSET_TABLE, offsets), (tags.EXTENDED_OFFSET_TABLE_LENGTHS, lengths)
        for tag, table in tables:
            yield whole_element(tag, "OV", struct.pack(f"<{len(table)}Q", *table))
    yield element_head(tags.PIXEL_DATA, "OB", UNDEFINED) + _fragment(0xFFFE, 0xE000, len(basic)) + basic
    for each in ranges:
        yield _fragment(0xFFFE, 0xE000, each.length + each.length % 2)
        yield each
        if each.length % 2:
            yield b"\0"
    yield SEQUENCE_END


def part10_head(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble, prefix and file meta information."""
    body = b"".join(
        (
            whole_element("00020001", "OB", b"\0\1"),
            whole_element("00020002", "UI", sop_class.encode("ascii", "replace")),
            whole_element("00020003", "UI", instance.encode("ascii", "replace")),
            whole_element(tags.TRANSFER_SYNTAX_UID, "UI", syntax.encode("ascii", "replace")),
            whole_element("00020012", "UI", IMPLEMENTATION_CLASS_UID.encode()),
            whole_element("00020013", "SH", IMPLEMENTATION_VERSION_NAME.encode()),
        )
    )
    return bytes(128) + b"DICM" + whole_element("00020000", "UL", struct.pack("<I", len(body))) + body
