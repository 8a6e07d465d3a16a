"""The data that the Part 10 reader extracts from one SOP instance: plain values.

All offsets count bytes from the start of the Part 10 file (its preamble is at 0). With
`SOPInstance.deflated` the offsets inside the dataset count from the start of the *inflated* dataset, because
only an inflating stream can reach these bytes.

Slots. The DICOM JSON text has one byte 0x00 in the place of the URL of the instance:
`"BulkDataURI":"\\x00/bulkdata/7FE00010"`. JSON text never holds a raw 0x00, so `text.replace(b"\\0", url)` is
exact. The length of the result is `metadata_length + metadata_slots * (len(url) - 1)`.

Pixel facts pack the format of the samples into one number (PS3.3 C.7.6.3):

    bits 0 to 6  Bits Stored            bit 8         Planar Configuration
    bit 7        Pixel Representation   bits 9 to 15  number of the Photometric Interpretation

Rule: the number is 0 unless each attribute has one value of its VR and High Bit is Bits Stored - 1. Index
rows contain the number, so its meaning does not change.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streamsrv.dicom import tags

# DICOM JSON (PS3.18 F.2.2): {"00100010": {"vr": "PN", ...}}
JsonElement = dict[str, Any]
JsonDataset = dict[str, JsonElement]


class FrameKind(enum.IntEnum):
    """How to find the frames of an instance."""

    NONE = 0  # no pixel data
    NATIVE = 1  # frame i is `stride` bytes at base + i * stride
    BITS = 2  # 1-bit pixels whose frames do not start on a byte: base in bytes, stride in bits
    TABLE = 3  # encapsulated: one (offset, length) a frame
    EMPTY = 4  # pixel data without one whole frame


# A flag of the length in a frame table: the frame has several fragments. The range then starts at the *item
# header* of the first fragment and ends with the last byte of the last fragment.
FRAGMENTED = 1 << 63


@dataclass(slots=True)
class FrameLayout:
    """`table` holds little-endian uint64 pairs (offset, length), one a frame, for FrameKind.TABLE; else it is
    empty. For `base` and `stride` see FrameKind. `number` counts the frames in the file, which may be fewer
    than NumberOfFrames.
    """

    kind: FrameKind = FrameKind.NONE
    number: int = 0
    base: int = 0
    stride: int = 0
    table: bytes = b""


@dataclass(frozen=True, slots=True)
class BulkValue:
    """A value that the metadata refer to. `path` is that of its BulkDataURI: "7FE00010", or nested
    "00480105/0/00282000" (item index from 0).

    `length` is its length in the file. For encapsulated pixel data it includes all items and the basic offset
    table, but not the sequence delimiter.
    """

    path: str
    vr: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class AttributeWarning:
    """A value that breaks the rules of its VR. The instance is stored all the same."""

    tag: str
    reason: str


@dataclass(slots=True)
class SOPInstance:
    """UIDs have no padding. `attributes` holds the kept top-level elements by tag ("00100010")."""

    study_uid: str
    series_uid: str
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    dataset_offset: int  # where the dataset begins, after the file meta information
    deflated: bool
    pixel_offset: int  # value of Pixel Data (7FE0,0010 / 0008 / 0009); 0 without
    pixel_length: int  # bytes in the file, without the sequence delimiter of encapsulated pixel data
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    pixel_facts: int  # see `facts_in`; 0 if unknown
    frames: FrameLayout
    attributes: JsonDataset
    metadata_length: int  # of the JSON text, each slot counted as one byte
    metadata_slots: int
    bulk: list[BulkValue] = field(default_factory=list)
    warnings: list[AttributeWarning] = field(default_factory=list)


# Pixel facts

UNKNOWN = 0
# PS3.3 C.7.6.3.1.2. New terms go to the end.
PHOTOMETRIC_INTERPRETATIONS = (
    "",
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
    "XYB",
)
_COLOURS: dict[Any, int] = {term: number for number, term in enumerate(PHOTOMETRIC_INTERPRETATIONS) if term}
_MOST_BITS = 0x7F
_SIGN, _PLANES, _COLOUR = 7, 8, 9
_NUMBERS = (
    tags.ROWS,
    tags.COLUMNS,
    tags.BITS_ALLOCATED,
    tags.SAMPLES_PER_PIXEL,
    tags.BITS_STORED,
    tags.HIGH_BIT,
    tags.PIXEL_REPRESENTATION,
)

Element = Callable[[str], JsonElement | None]


class PixelFacts(NamedTuple):
    """Planar Configuration is 0 where a pixel has one sample."""

    bits_stored: int
    pixel_representation: int
    planar_configuration: int
    photometric_interpretation: str


def facts_in(element: Element) -> int:
    """The number of a dataset whose top-level elements `element` finds by tag; UNKNOWN if an attribute is
    missing or invalid, and for floating-point pixels (PS3.3 C.7.6.24, C.7.6.25)."""
    values = []
    for tag in _NUMBERS:
        value = _only(element(tag), "US")
        if value is None:
            return UNKNOWN
        values.append(value)
    rows, columns, allocated, samples, stored, high, sign = values
    planes = _only(element(tags.PLANAR_CONFIGURATION), "US") if samples > 1 else 0
    colour = _COLOURS.get(_only(element(tags.PHOTOMETRIC_INTERPRETATION), "CS"), 0)
    plain = (
        colour
        and planes in (0, 1)
        and sign in (0, 1)
        and 0 < stored <= _MOST_BITS
        and high == stored - 1
        and rows
        and columns
        and allocated
        and samples
        and not element(tags.FLOAT_PIXEL_DATA)
        and not element(tags.DOUBLE_FLOAT_PIXEL_DATA)
    )
    return stored | sign << _SIGN | planes << _PLANES | colour << _COLOUR if plain else UNKNOWN


def unpacked(facts: int) -> PixelFacts | None:
    """Returns None for UNKNOWN."""
    stored, colour = facts & _MOST_BITS, facts >> _COLOUR
    if not stored or not 0 < colour < len(PHOTOMETRIC_INTERPRETATIONS):
        return None
    term = PHOTOMETRIC_INTERPRETATIONS[colour]
    return PixelFacts(stored, facts >> _SIGN & 1, facts >> _PLANES & 1, term)


def _only(element: JsonElement | None, vr: str) -> Any:
    """The only value of an element of this VR; else None."""
    values = element.get("Value") if element and element["vr"] == vr else None
    return values[0] if values and len(values) == 1 else None
