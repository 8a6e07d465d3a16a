"""Stored bytes compared with their digest, and the consequences if they differ.

Strategy: the digest of an instance (xxh3-128) was taken while its bytes arrived, and stands in its index row
and in the header of its record. To verify is to read all bytes through a window and compare. A process
that finds damage registers it (see damage): the log names the instance at level ERROR, and no process
serves its bytes from then on.

Rules of this file
- Damage is bytes that were read and are wrong, or a file that is missing or too short. A read that the
  system refuses is an OSError: the next one may succeed.
- The row itself may be wrong. A valid header of the same record decides.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from typing import Protocol

import xxhash

from streamsrv.errors import InstanceDamaged
from streamsrv.store.index.damage import DamagedRecord
from streamsrv.store.rows import InstanceRow
from streamsrv.store.segments.records import HEADER, Header, HeaderDamaged, RecordFormat

log = logging.getLogger("streamsrv.store")

HASH_WINDOW = 1 << 20
WRONG_DIGEST = "its checksum is not that of its arrival"
MISSING_SEGMENT = "the file of its segment is missing"
SHORT_SEGMENT = "the file of its segment ends before it"


class DamageIndex(Protocol):
    """The part of the index that registering needs."""

    @property
    def read_only(self) -> bool: ...

    def register_damage(self, records: list[DamagedRecord]) -> list[bool]: ...


def digest_of(fd: int, offset: int, length: int) -> bytes:
    """xxh3-128 of a range, through a window."""
    running = xxhash.xxh3_128()
    for start in range(offset, offset + length, HASH_WINDOW):
        running.update(os.pread(fd, min(HASH_WINDOW, offset + length - start), start))
    return running.digest()


def header_of(form: RecordFormat, fd: int, row: InstanceRow) -> Header | None:
    """The header in front of an instance; None unless it is valid and that of the same record."""
    segment, offset, length = row.location
    try:
        header = form.header_at(fd, segment, offset - HEADER, offset + length)
    except HeaderDamaged:
        return None
    return header if (header.record_id, header.length) == (row.record_id, length) else None


def damage_of(form: RecordFormat, fd: int, row: InstanceRow) -> str:
    """Why the stored bytes are not those that arrived; empty if they are. Reads all of them. Raises
    OSError."""
    _, offset, length = row.location
    digest = digest_of(fd, offset, length)
    if digest == row.digest:
        return ""
    if os.fstat(fd).st_size < offset + length:
        return SHORT_SEGMENT
    header = header_of(form, fd, row)
    return "" if header is not None and header.digest == digest else WRONG_DIGEST


def damaged_record(row: InstanceRow, reason: str) -> DamagedRecord:
    return DamagedRecord(row.record_id, row.key, row.location, reason, time.time_ns() // 1_000)


def register(index: DamageIndex, records: Iterable[DamagedRecord]) -> int:
    """Durably, and told at level ERROR; returns how many are new. A store that is open for reading only is
    told to the log alone."""
    found = list(records)
    if not found:
        return 0
    added = [True] * len(found) if index.read_only else index.register_damage(found)
    for record, new in zip(found, added, strict=True):
        if new:
            log.error("damaged: %s", described(record))
    return sum(added)


def described(record: DamagedRecord) -> str:
    """Which instance, where, and why."""
    segment, offset, _ = record.location
    name = "of unknown UIDs" if record.key is None else "/".join(record.key)
    return f"instance {name}, segment {segment}, byte {offset}: {record.reason}"


def refusal(records: Iterable[DamagedRecord]) -> InstanceDamaged:
    """The error for a client that asks for the bytes of these records, one at least."""
    first, *others = records
    return InstanceDamaged(*(first.key or ("", "", "")), first.reason, len(others) + 1)
