"""The values that cross the seam between the store and everyone above it. No file, no LMDB, no behaviour
beyond packing.

A *location* names bytes for ever: segments are append-only, so (segment, offset, length) is either those
bytes or SegmentGone.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from streamsrv.dicom.instance import BulkValue, FrameKind, JsonDataset


class InstanceKey(NamedTuple):
    """Identity of a SOP instance: the triple, because split studies share SOP instance UIDs."""

    study: str
    series: str
    instance: str


class Location(NamedTuple):
    """A record's payload, the Part 10 file as received: `length` bytes at `offset` of the segment."""

    segment: int
    offset: int
    length: int


class InstanceRow(NamedTuple):
    """What a retrieve needs to know of one instance: the fixed struct of the `instances` database. A tuple,
    because thousands are made for an answer."""

    key: InstanceKey
    location: Location
    record_id: bytes  # 16 bytes, unique for ever; the ETag comes from it
    stored_at: int  # microseconds since 1970, UTC
    digest: bytes  # xxh3-128 of the payload, 16 bytes
    sop_class_uid: str
    transfer_syntax: str
    dataset_offset: int
    deflated: bool
    pixel_offset: int
    pixel_length: int
    rows: int
    columns: int
    pixel_facts: int  # dicom/pixelfacts.py; 0 if not known
    samples_per_pixel: int
    bits_allocated: int
    frame_kind: FrameKind
    number_of_frames: int
    frame_base: int
    frame_stride: int
    metadata_length: int
    metadata_slots: int
    damaged: bool = False  # registered as damaged (damage.py); only `Index.instance` says so


@dataclass(slots=True)
class NewInstance:
    """One instance on its way into the index. `metadata` are zstd frames, each of at most METADATA_CHUNK
    bytes of JSON text with slots; `frame_table` as Frames.table; `attributes` the top-level elements that
    searches match or return, as DICOM JSON. `text` is the JSON text itself, instead of `metadata`, where that
    has at most SHORT_TEXT bytes."""

    row: InstanceRow
    metadata: list[bytes]
    frame_table: bytes
    bulk: list[BulkValue]
    attributes: JsonDataset
    text: bytes = b""

    @property
    def size(self) -> int:
        """Bytes that it adds to a transaction, nearly."""
        metadata = len(self.text) + sum(map(len, self.metadata))
        return 1500 + metadata + len(self.frame_table) + 64 * len(self.bulk)


# Where the first record of a segment begins: behind the header of the file (see segment_header).
FIRST_RECORD = 64
# One commit to the index holds at most this many instances (20 to 40 ms), and about this many bytes of
# entries: others wait for it, and its dirty pages are in memory.
SLICE_INSTANCES = 1_000
SLICE_BYTES = 16 << 20
METADATA_CHUNK = 256 * 1024
SHORT_TEXT = 16 * 1024


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A segment as the index knows it. What lies behind `committed_end` was never acknowledged; `live` and
    `dead` count bytes of payloads, `dead` also what its writer declared dead (voids, tombstones); a sealed
    segment takes no more records."""

    segment: int
    committed_end: int = FIRST_RECORD
    live: int = 0
    dead: int = 0
    sealed: bool = False

    @property
    def empty(self) -> bool:
        """Nothing has been committed to it, so it may have no file yet."""
        return self.committed_end <= FIRST_RECORD


class OnDuplicate(enum.StrEnum):
    REFUSE = "refuse"
    ACCEPT_IDENTICAL = "accept-identical"
    REPLACE = "replace"


class Outcome(enum.IntEnum):
    """What became of a NewInstance in a commit."""

    STORED = 0
    DUPLICATE = 1  # refused: the triple is there already
    IDENTICAL = 2  # the same bytes are there already: accepted, nothing written
    REPLACED = 3  # stored, and the one before is dead


class ChangeKind(enum.IntEnum):
    STORED = 0
    REPLACED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the change log; `sequence` counts from 1 within `epoch`, in commit order."""

    sequence: int
    kind: ChangeKind
    key: InstanceKey
    record_id: bytes
    at: int  # microseconds since 1970, UTC
