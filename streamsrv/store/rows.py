"""The values that the store and the rooms above it exchange. They know no file and no database.

A *location* always names the same bytes: segments are append-only, so (segment, offset, length) gives these
bytes or SegmentGone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset


class InstanceKey(NamedTuple):
    """The identity of a SOP instance. Split studies share SOP instance UIDs, so it is the triple."""

    study: str
    series: str
    instance: str


class Location(NamedTuple):
    """The payload of a record, the Part 10 file as received: `length` bytes at `offset` of the segment."""

    segment: int
    offset: int
    length: int


class InstanceRow(NamedTuple):
    """The facts of one instance that a retrieve needs. A tuple, because an answer makes thousands of them."""

    key: InstanceKey
    location: Location
    record_id: bytes  # 16 bytes, unique forever; the ETag comes from it
    stored_at: int  # microseconds since 1970, UTC
    digest: bytes  # xxh3-128 and CRC-32 of the payload, 20 bytes
    sop_class_uid: str
    transfer_syntax: str
    dataset_offset: int
    deflated: bool
    pixel_offset: int
    pixel_length: int
    rows: int
    columns: int
    pixel_facts: int  # dicom/instance.py; 0 if not known
    samples_per_pixel: int
    bits_allocated: int
    frame_kind: FrameKind
    number_of_frames: int
    frame_base: int
    frame_stride: int
    metadata_length: int
    metadata_slots: int
    damaged: bool = False  # registered as damaged; set by `Index.instance` only

    @property
    def crc32(self) -> int:
        """The CRC-32 of the payload."""
        return int.from_bytes(self.digest[-4:], "big")


@dataclass(slots=True)
class NewInstance:
    """One instance on its way into the index. `metadata` are zstd frames, each of at most METADATA_CHUNK
    bytes of JSON text with slots; a text of at most SHORT_TEXT bytes is in `text` instead. `frame_table` is
    that of Frames; `attributes` are the top-level elements that searches match or return, as DICOM JSON."""

    row: InstanceRow
    metadata: list[bytes]
    frame_table: bytes
    bulk: list[BulkValue]
    attributes: JsonDataset
    text: bytes = b""

    @property
    def size(self) -> int:
        """About the number of bytes that it adds to a commit."""
        metadata = len(self.text) + sum(map(len, self.metadata))
        return 1500 + metadata + len(self.frame_table) + 64 * len(self.bulk)


# No segment has this number.
NO_SEGMENT = 0
# Offset of the first record of a segment, behind the header of the file (see segments/records.py).
FIRST_RECORD = 64
# One commit to the index holds at most this many instances (20 to 40 ms), and about this many bytes of
# entries: others wait for it, and its dirty pages are in memory.
SLICE_INSTANCES = 1_000
SLICE_BYTES = 16 << 20
METADATA_CHUNK = 256 * 1024
SHORT_TEXT = 16 * 1024


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment in the index. Bytes behind `committed_end` were never acknowledged. `live` and `dead` count
    bytes of payloads, `dead` also voids and tombstones. A sealed segment takes no more records."""

    segment: int
    committed_end: int = FIRST_RECORD
    live: int = 0
    dead: int = 0
    sealed: bool = False

    @property
    def empty(self) -> bool:
        """True before the first commit: it may have no file yet."""
        return self.committed_end <= FIRST_RECORD


class OnDuplicate(enum.StrEnum):
    REFUSE = "refuse"
    ACCEPT_IDENTICAL = "accept-identical"
    REPLACE = "replace"


class Outcome(enum.IntEnum):
    """The result of a commit for one instance."""

    STORED = 0
    DUPLICATE = 1  # refused: the triple is there already
    IDENTICAL = 2  # the same bytes are there already: accepted, nothing written
    REPLACED = 3  # stored, and the one before is dead
    UNAUTHORIZED = 4  # refused: outside the rule of the sender, or it would replace one that is


class ChangeKind(enum.IntEnum):
    STORED = 0
    REPLACED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the change log. `sequence` counts from 1 within an epoch, in commit order."""

    sequence: int
    kind: ChangeKind
    key: InstanceKey
    record_id: bytes
    at: int  # microseconds since 1970, UTC
    facts: bytes  # digest of the facts that rules of access compare
