"""What is open while a dataset is walked, and the VR of elements that do not say it (PS3.5 6.2.2, 7.1.3,
7.8.1, Annex A.1).

Rules: a private tag has the VR that pydicom's private dictionary gives it under its private creator, else UN.
Where the dictionary offers a choice ("US or SS"), Pixel Representation decides, and for LUT Data the first
value of LUT Descriptor.
"""

from __future__ import annotations

from collections.abc import Callable

from streamsrv.dicom.tags import private_vr, vr_of_number

PIXEL_REPRESENTATION = 0x00280103
LUT_DESCRIPTOR = 0x00283002
NOTED = (PIXEL_REPRESENTATION, LUT_DESCRIPTOR)  # standard elements that decide how others are read

_NOTHING: dict[int, bytes] = {}  # a sequence has no elements of its own


class Level:
    """An open dataset (`items` False) or sequence (`items` True). `end` bounds it; `delimited` if a delimiter
    ends it before."""

    __slots__ = ("delimited", "end", "explicit", "items", "little", "notes", "tag")

    def __init__(
        self, tag: int, end: int, *, items: bool, delimited: bool, explicit: bool, little: bool
    ) -> None:
        self.tag = tag
        self.end = end
        self.items = items
        self.delimited = delimited
        self.explicit = explicit
        self.little = little
        # What decides how others are read: private creators by group and block (24 bits), values by tag.
        self.notes: dict[int, bytes] = _NOTHING if items else {}

    def note(self, tag: int, value: bytes) -> None:
        """Remember a value that decides how others are read."""
        if tag in NOTED:
            self.notes[tag] = value
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF < 0x100:
            self.notes[tag >> 16 << 8 | tag & 0xFF] = value


def known_vr(level: Level, tag: int, length: int, signed_pixels: Callable[[], bool]) -> str | None:
    """What the dictionaries say of a tag without VR, or of UN."""
    if tag >> 16 & 1:
        return _private_vr(level, tag)
    vr = vr_of_number(tag)
    # UN stays UN where pydicom leaves it, and where its little endian value would be read as big endian.
    if vr is None or (level.explicit and vr != "SQ" and (length >= 0xFFFF or not level.little)):
        return None
    return _unambiguous(level, vr, signed_pixels) if len(vr) > 2 else vr


def _private_vr(level: Level, tag: int) -> str | None:
    element = tag & 0xFFFF
    if 0x10 <= element < 0x100:
        return "LO"
    creator = level.notes.get(tag >> 16 << 8 | element >> 8)
    if not creator or element < 0x1000:
        return None
    vr = private_vr(tag, creator.decode("latin-1").strip(" \0"))
    return vr if vr is None or len(vr) == 2 else vr[-2:]


def _unambiguous(level: Level, vr: str, signed_pixels: Callable[[], bool]) -> str:
    """One VR for "US or SS", "OB or OW", "US or OW" and "US or SS or OW" (PS3.3 C.11.1.1.1 for LUT Data)."""
    if vr == "US or SS":
        return "SS" if signed_pixels() else "US"
    if vr == "US or OW" and level.notes.get(LUT_DESCRIPTOR, b"")[:2] == b"\1\0":
        return "US"
    return "OW"
