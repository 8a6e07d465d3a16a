"""The layout of a segment that is an object, without a file and without a bucket.

    file header    64 bytes, as that of a segment file (segments/records.py)
    records        header and payload
    TRAILER        a record; its payload lists the records of the object, 112 bytes each
    SEAL           a header without payload, the last 104 bytes; `began` is the offset of TRAILER

An entry of the trailer is the offset of a record (8 bytes) and its final header (104 bytes).

A tombstone is an object of its own: a file header of segment 0, and a TOMBSTONE record.

Strategy: bytes leave in parts, in their order. A part is held back while the header of a record in it is not
final, until a second part is full. So a record that is no longer than a part has its final header in front,
as in a segment file. The header in front of a longer one stays PENDING, and the trailer has the final one.

Rules of this file
- An object cannot be patched: a byte that has left never changes.
- The trailer decides which records an object has. Records that were dropped stay between them, unlisted.
- An entry has a keyed check of its own. A damaged entry costs one record, and only if it is a long one.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from streamsrv.store.rows import FIRST_RECORD, NO_SEGMENT
from streamsrv.store.segments.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    DamagedBytes,
    FoundRecord,
    HeaderDamaged,
    PayloadDigest,
    Record,
    RecordFormat,
    RecordHeader,
    RecordKind,
    Step,
    pack_file_header,
    pack_ids,
)

_OFFSET = struct.Struct("<Q")
ENTRY = _OFFSET.size + HEADER
# The keys of objects, and those of tombstones, begin so.
SEGMENTS, TOMBSTONES = "segments/", "deleted/"
_KEY = re.compile(rf"{SEGMENTS}[0-9a-f]{{2}}/[0-9a-f]{{32}}-([0-9a-f]{{8}})")


def _fresh(prefix: str) -> str:
    """A key that was never used. Its first characters are random, so that keys spread over the partitions of
    the bucket."""
    random = secrets.token_hex(16)
    return f"{prefix}{random[:2]}/{random}"


def fresh_stem() -> str:
    """The begin of a key that was never used; behind it stands the segment in eight hex digits."""
    return f"{_fresh(SEGMENTS)}-"


def fresh_tombstone_key() -> str:
    return _fresh(TOMBSTONES)


def segment_of(key: str) -> int | None:
    """None if it is not the key of a segment."""
    found = _KEY.fullmatch(key)
    return int(found[1], 16) if found else None


class Patch(NamedTuple):
    """A header that replaces the one at `offset`."""

    offset: int
    header: bytes


class PartPlan:
    """Decides which bytes of an object may leave. The caller writes them to a file first.

    Offsets are bytes of the object. `end` is that of the next byte; bytes before `sent` have left.
    """

    def __init__(self, part: int) -> None:
        self.part = part
        self.end = 0
        self.sent = 0
        self._open = -1  # offset of the open record, or -1
        self._closed: list[tuple[int, Patch]] = []  # end of a record, and its header that is not written yet

    def open_record(self, offset: int) -> None:
        """A record begins at `offset`, maybe behind the bytes that are written."""
        self._open = offset

    def close_record(self, end: int, header: bytes) -> None:
        """The open record ends at `end`, maybe behind the bytes that are written."""
        self._closed.append((end, Patch(self._open, header)))
        self._open = -1

    def back_to(self, end: int) -> None:
        """Forget the records from `end` on, where a record ended. Bytes that have left stay: the next record
        begins behind them."""
        self._open = -1
        self._closed = [(at, patch) for at, patch in self._closed if at <= end]
        self.end = max(end, self.sent)

    def patches(self) -> Iterator[Patch]:
        """Headers of records that are written whole, to be written before the next `take`. A header that has
        left stays as it is."""
        whole = [patch for at, patch in self._closed if at <= self.end]
        self._closed = [(at, patch) for at, patch in self._closed if at > self.end]
        yield from (patch for patch in whole if patch.offset >= self.sent)

    def take(self, *, last: bool = False) -> Iterator[tuple[int, int]]:
        """Parts (begin, end) that leave now; with `last` also the rest."""
        while self.end - self.sent >= self.part and (last or self._may_leave()):
            begin, self.sent = self.sent, self.sent + self.part
            yield begin, self.sent
        if last and self.sent < self.end:
            begin, self.sent = self.sent, self.end
            yield begin, self.end

    def _may_leave(self) -> bool:
        offsets = [patch.offset for _, patch in self._closed]
        first = min([*offsets, self._open] if self._open >= 0 else offsets, default=self.end)
        return first >= self.sent + self.part or self.end - self.sent >= 2 * self.part


def final_header(form: RecordFormat, record: Record, digest: bytes = b"") -> bytes:
    """The header of a record that has been received whole, with its digest or another one. The database knows
    the record that it replaces."""
    return record.header(form, FIRST_RECORD, digest=digest)


def pending_header(form: RecordFormat, record_id: bytes, segment: int, offset: int) -> bytes:
    header = RecordHeader(RecordKind.PENDING, record_id, 0, 0, NO_DIGEST, FIRST_RECORD)
    return form.pack(header, segment, offset)


def tombstone_object(form: RecordFormat, ids: bytes, stored_at: int) -> bytes:
    """An object that says that these records are dead, `ids` one behind the other."""
    payload = pack_ids([ids])
    record_id, digest = secrets.token_bytes(len(NO_ID)), PayloadDigest(payload).digest()
    header = RecordHeader(RecordKind.TOMBSTONE, record_id, stored_at, len(payload), digest, FIRST_RECORD)
    return pack_file_header(form, NO_SEGMENT) + form.pack(header, NO_SEGMENT, FIRST_RECORD) + payload


def pack_trailer(form: RecordFormat, segment: int, offset: int, records: Sequence[Record]) -> bytes:
    """TRAILER and SEAL of an object whose records end at `offset`."""
    entries = b"".join(_OFFSET.pack(record.begin) + final_header(form, record) for record in records)
    digest = PayloadDigest(entries).digest()
    trailer = RecordHeader(RecordKind.TRAILER, NO_ID, 0, len(entries), digest, offset)
    seal = RecordHeader(RecordKind.SEAL, NO_ID, 0, 0, NO_DIGEST, offset)
    end = offset + HEADER + len(entries)
    return form.pack(trailer, segment, offset) + entries + form.pack(seal, segment, end)


def trailer_of(form: RecordFormat, fd: int, segment: int, end: int) -> tuple[int, list[Step]]:
    """The offset of the trailer, and a step for each entry. Raises HeaderDamaged."""
    if end < FIRST_RECORD + 2 * HEADER:
        raise HeaderDamaged("no object of a segment is so short")
    seal = form.header_at(fd, segment, end - HEADER, end)
    if seal.kind is not RecordKind.SEAL:
        raise HeaderDamaged("the object does not end with a seal")
    trailer = form.header_at(fd, segment, seal.began, end)
    if trailer.kind is not RecordKind.TRAILER or seal.began + HEADER + trailer.length != end - HEADER:
        raise HeaderDamaged("the seal of the object names no trailer")
    entries = os.pread(fd, trailer.length, seal.began + HEADER)
    return seal.began, [
        _step(form, fd, segment, offset, raw, seal.began) for offset, raw in entries_in(entries)
    ]


def entries_in(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset, header) of each record, from the payload of a trailer."""
    for at in range(0, len(payload) - len(payload) % ENTRY, ENTRY):
        (offset,) = _OFFSET.unpack_from(payload, at)
        yield offset, payload[at + _OFFSET.size : at + ENTRY]


def _step(form: RecordFormat, fd: int, segment: int, offset: int, raw: bytes, end: int) -> Step:
    """The record of an entry. If the entry is damaged, the header in front of the record."""
    try:
        return FoundRecord(offset, form.unpack(raw, segment, offset))
    except HeaderDamaged as reason:
        damaged = str(reason)
    try:
        header = form.header_at(fd, segment, offset, end)
    except HeaderDamaged:
        return DamagedBytes(offset, min(offset + HEADER, end), damaged)
    if header.kind is RecordKind.INSTANCE:
        return FoundRecord(offset, header)
    return DamagedBytes(offset, form.resync(fd, segment, offset + HEADER, end), damaged)


def walk_object(form: RecordFormat, fd: int, segment: int, end: int) -> Iterator[Step]:
    """Every record of an object of `end` bytes, from a file with its bytes. If the trailer is damaged, the
    headers in front of the records are read: they do not tell which records were dropped, and a record
    longer than a part has no end and no digest."""
    try:
        _, steps = trailer_of(form, fd, segment, end)
    except HeaderDamaged as reason:
        yield DamagedBytes(max(end - HEADER, 0), end, str(reason))
        steps = list(_without_trailer(form, fd, segment, end))
    yield from steps


def _without_trailer(form: RecordFormat, fd: int, segment: int, end: int) -> Iterator[Step]:
    offset = form.resync(fd, segment, FIRST_RECORD, end)
    while offset < end:
        found = FoundRecord(offset, form.header_at(fd, segment, offset, end))
        following = form.resync(fd, segment, found.end, end)
        if found.header.kind is RecordKind.INSTANCE:
            yield found
        elif found.header.kind is RecordKind.PENDING:
            yield DamagedBytes(offset, following, "the trailer with its length is damaged")
        offset = following
