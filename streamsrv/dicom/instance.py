"""What the Part 10 reader learns of one SOP instance: plain values, no behaviour.

All offsets count bytes from the start of the Part 10 file (its preamble is at 0). For the deflated transfer
syntaxes the offsets of everything in the dataset count from the start of the *inflated* dataset instead
(`SOPInstance.deflated` is True), because only an inflating stream can reach it.

Slots. The DICOM JSON in `metadata` is the text that goes to clients, with one byte 0x00 wherever the
instance's own URL belongs: `"BulkDataURI":"\\x00/bulkdata/7FE00010"`. JSON text never holds a raw 0x00 (it
would be written as an escape), so `text.replace(b"\\0", url)` is exact, and its length is known without
reading it: `metadata_length + metadata_slots * (len(url) - 1)`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

# One element of DICOM JSON (PS3.18 F.2.2): {"vr": "LO", "Value": ["x"]}, keyed by eight upper-case hex
# digits.
JsonElement = dict[str, Any]
JsonDataset = dict[str, JsonElement]


class FrameKind(enum.IntEnum):
    """How the frames of an instance are found."""

    NONE = 0  # no pixel data
    NATIVE = 1  # frame i is `stride` bytes at base + i * stride
    BITS = 2  # 1-bit pixels whose frames do not start on a byte: base is bytes, stride is bits
    TABLE = 3  # encapsulated: one (offset, length) a frame
    EMPTY = 4  # pixel data is there, yet not one whole frame of it can be found


# In a frame table: set on the length when the range still holds item headers, because the frame has several
# fragments. The range then starts at the first fragment's *item header* and ends with the last fragment's
# last byte.
FRAGMENTED = 1 << 63


@dataclass(slots=True)
class Frames:
    """`table` is packed little-endian uint64 pairs (offset, length), shape (number, 2), for FrameKind.TABLE;
    else empty. `base` and `stride` as FrameKind says; `number` frames are really there, which may be fewer
    than NumberOfFrames claims.
    """

    kind: FrameKind = FrameKind.NONE
    number: int = 0
    base: int = 0
    stride: int = 0
    table: bytes = b""


@dataclass(frozen=True, slots=True)
class BulkValue:
    """A value left out of the metadata. `path` as in its BulkDataURI: "7FE00010", nested
    "00480105/0/00282000" (item index from 0).

    `length` is the value's bytes in the file; for encapsulated pixel data it spans all items, the basic
    offset table's included and the sequence delimiter excluded.
    """

    path: str
    vr: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class AttributeWarning:
    """A value that breaks the rules of its VR. It never costs the instance."""

    tag: str
    reason: str


@dataclass(slots=True)
class SOPInstance:
    """Everything that storing needs to know. UIDs are trimmed of padding; `attributes` holds the top-level
    elements that were asked for by tag ("00100010"), as DICOM JSON."""

    study_uid: str
    series_uid: str
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    dataset_offset: int  # where the dataset begins, after the file meta information
    deflated: bool
    pixel_offset: int  # value of Pixel Data (7FE0,0010 / 0008 / 0009); 0 without
    pixel_length: int  # its bytes in the file, for encapsulated ones up to and without the sequence delimiter
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    pixel_facts: int  # as pixelfacts.py says; 0 if not known
    frames: Frames
    attributes: JsonDataset
    metadata_length: int  # of the JSON text, each slot counted as one byte
    metadata_slots: int
    bulk: list[BulkValue] = field(default_factory=list)
    warnings: list[AttributeWarning] = field(default_factory=list)
