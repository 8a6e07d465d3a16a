"""The data that the Part 10 reader extracts from one SOP instance: plain values, no behaviour.

All offsets count bytes from the start of the Part 10 file (its preamble is at 0). With
`SOPInstance.deflated` the offsets inside the dataset count from the start of the *inflated* dataset, because
only an inflating stream can reach these bytes.

Slots. The DICOM JSON text has one byte 0x00 in the place of the URL of the instance:
`"BulkDataURI":"\\x00/bulkdata/7FE00010"`. JSON text never holds a raw 0x00, so `text.replace(b"\\0", url)` is
exact. The length of the result is `metadata_length + metadata_slots * (len(url) - 1)`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

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
    pixel_facts: int  # see pixelfacts.py; 0 if unknown
    frames: FrameLayout
    attributes: JsonDataset
    metadata_length: int  # of the JSON text, each slot counted as one byte
    metadata_slots: int
    bulk: list[BulkValue] = field(default_factory=list)
    warnings: list[AttributeWarning] = field(default_factory=list)
