"""Compares stored bytes with their digest, and registers damage.

Strategy: the digest of an instance was taken while its bytes arrived. The index row and the
header of the record have it. A process that finds other bytes registers them (see index/damage.py): the
log names the instance at level ERROR, and no process serves its bytes from then on.

Rules of this file
- DamagedBytes is bytes that were read and are wrong, or a file that is missing or too short. A read that the
  system refuses is an OSError: the next one may succeed.
- The row itself may be wrong. A valid header of the same record decides.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

from streamsrv.errors import InstanceDamaged, ObjectGone, SegmentGone
from streamsrv.store.index import DamagedRecord, Index
from streamsrv.store.rows import InstanceRow
from streamsrv.store.segments.leases import SegmentLease
from streamsrv.store.segments.records import HEADER, HeaderDamaged, PayloadDigest, RecordFormat, RecordHeader

log = logging.getLogger("streamsrv.store")

HASH_WINDOW = 1 << 20
WRONG_DIGEST = "its checksum is not that of its arrival"
MISSING_SEGMENT, MISSING_OBJECT = SegmentGone.lost, ObjectGone.lost
SHORT_SEGMENT = "the file of its segment ends before it"
SHORT_OBJECT = "its object ends before it"


def digest_of(fd: int, offset: int, length: int) -> bytes:
    """The digest of a range of a file."""
    running = PayloadDigest()
    add_bytes(running, fd, offset, length)
    return running.digest()


def add_bytes(digest: PayloadDigest, fd: int, offset: int, length: int) -> int:
    """Read a range of a file into a digest. Returns the number of bytes, fewer at the end of the file."""
    found = 0
    for start in range(offset, offset + length, HASH_WINDOW):
        content = os.pread(fd, min(HASH_WINDOW, offset + length - start), start)
        digest.update(content)
        found += len(content)
    return found


def header_of(form: RecordFormat, lease: SegmentLease, row: InstanceRow) -> RecordHeader | None:
    """The header in front of an instance; None if it is damaged or of another record. Raises the errors of
    the lease."""
    segment, offset, length = row.location
    try:
        header = form.unpack(lease.pread(segment, offset - HEADER, HEADER), segment, offset - HEADER)
    except (HeaderDamaged, OSError):
        return None
    return header if (header.record_id, header.length) == (row.record_id, length) else None


def damage_of(form: RecordFormat, lease: SegmentLease, row: InstanceRow) -> str:
    """Read all bytes of an instance; returns the reason if they differ from those that arrived, else "".
    Raises OSError, and the errors of the lease."""
    segment, offset, length = row.location
    running = PayloadDigest()
    found = sum(add_bytes(running, *part) for part in lease.windows(segment, offset, length))
    digest = running.digest()
    if digest == row.digest:
        return ""
    if found < length:
        return SHORT_SEGMENT
    header = header_of(form, lease, row)
    return "" if header is not None and header.digest == digest else WRONG_DIGEST


def damaged_record(row: InstanceRow, reason: str) -> DamagedRecord:
    return DamagedRecord(row.record_id, row.key, row.location, reason, time.time_ns() // 1_000)


def register(index: Index, records: Iterable[DamagedRecord]) -> int:
    """Register damage durably and log it; returns how many records are new. For a read-only store it is only
    logged."""
    found = list(records)
    if not found:
        return 0
    added = [True] * len(found) if index.read_only else index.register_damage(found)
    for record, new in zip(found, added, strict=True):
        if new:
            log.error("damaged: %s", described(record))
    return sum(added)


def described(record: DamagedRecord) -> str:
    """Instance, place and reason, for a log or a report."""
    segment, offset, _ = record.location
    name = "of unknown UIDs" if record.key is None else "/".join(record.key)
    return f"instance {name}, segment {segment}, byte {offset}: {record.reason}"


def refusal(records: Iterable[DamagedRecord]) -> InstanceDamaged:
    """The error for a client that asks for the bytes of these records, one at least."""
    first, *others = records
    return InstanceDamaged(*(first.key or ("", "", "")), first.reason, len(others) + 1)
