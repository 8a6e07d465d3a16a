"""The register of damaged records: rows of the database `damage`.

    record id (16 bytes) -> found at u64, segment u32, offset u64, length u64, then the text
                            study \\0 series \\0 instance \\0 reason

Strategy: a process that finds changed bytes registers the record (scrub, check, compaction, reindex, a store
of the same instance). From that commit on every process refuses to serve the bytes. The row goes when the
instance is deleted or stored again, or when a later check finds the bytes whole.

A look-up must cost nothing while nothing is damaged. So a reader counts the rows once for each index version,
and looks for a record only if there are any.

Integers are little endian. `found at` is in microseconds since 1970, UTC. The location is that of the payload
when the damage was found. A checksum follows each row (see rows).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from streamsrv.errors import StoreCorrupt
from streamsrv.store.index.rows import record_id_of, triple, unpack_instance, with_sum, without_sum
from streamsrv.store.rows import InstanceKey, Location

_PLACE = struct.Struct("<QIQQ")


class DamagedRecord(NamedTuple):
    """A record whose stored bytes differ from those that arrived. `key` is None if unknown."""

    record_id: bytes
    key: InstanceKey | None
    location: Location
    reason: str
    found_at: int  # microseconds since 1970, UTC


def pack_damaged(record: DamagedRecord) -> bytes:
    text = "\0".join((*(record.key or ("", "", "")), record.reason)).encode()
    return with_sum(record.record_id, _PLACE.pack(record.found_at, *record.location) + text)


def unpack_damaged(record_id: bytes, stored: bytes) -> DamagedRecord:
    """Raises StoreCorrupt if the row is damaged."""
    value = without_sum("damage", record_id, stored)
    try:
        found_at, *place = _PLACE.unpack_from(value)
        study, series, instance, reason = value[_PLACE.size :].decode().split("\0", 3)
    except (struct.error, ValueError) as error:
        raise StoreCorrupt("a row of the database damage cannot be read: run reindex") from error
    key = InstanceKey(study, series, instance) if study else None
    return DamagedRecord(record_id, key, Location(*place), reason, found_at)


class DamageReader:
    """Look-ups within the read transactions of one process."""

    def __init__(self, handles: dict[str, Any]) -> None:
        self._handles = handles
        self._counted = (-1, 0)  # a commit, and the rows after it

    def any(self, transaction: Any) -> bool:
        """Whether anything is registered."""
        version, count = self._counted
        if version != transaction.id():
            count = transaction.stat(self._handles["damage"])["entries"]
            self._counted = transaction.id(), count
        return count > 0

    def has(self, transaction: Any, record_id: bytes) -> bool:
        return self.any(transaction) and transaction.get(record_id, db=self._handles["damage"]) is not None

    def among(self, transaction: Any, ids: Iterable[bytes]) -> list[DamagedRecord]:
        """The registered ones of these records."""
        if not self.any(transaction):
            return []
        handle = self._handles["damage"]
        found = ((each, transaction.get(each, db=handle)) for each in ids)
        return [unpack_damaged(each, value) for each, value in found if value is not None]

    def page(self, transaction: Any, after: bytes, limit: int) -> list[DamagedRecord]:
        """In the order of their ids, from behind `after`; each with its current location."""
        cursor = transaction.cursor(db=self._handles["damage"])
        more = cursor.set_range(after + b"\0") if after else cursor.first()
        rows: Iterator[tuple[bytes, bytes]] = cursor.iternext() if more else iter(())
        return [self._current(transaction, unpack_damaged(key, value)) for key, value in islice(rows, limit)]

    def _current(self, transaction: Any, record: DamagedRecord) -> DamagedRecord:
        """Compaction may have moved the record."""
        if record.key is None:
            return record
        value = transaction.get(triple(record.key), db=self._handles["instances"])
        if value is None or record_id_of(value) != record.record_id:
            return record
        return record._replace(location=unpack_instance(record.key, value).location)


class DamageWriter:
    """Changes within one write transaction."""

    def __init__(self, transaction: Any, handles: dict[str, Any]) -> None:
        self._transaction = transaction
        self._handles = handles

    def register(self, records: Sequence[DamagedRecord]) -> list[bool]:
        """True for each new record. A record that the index no longer has is not registered."""
        return [self._is_current(record) and self._add(record) for record in records]

    def _add(self, record: DamagedRecord) -> bool:
        added: bool = self._transaction.put(
            record.record_id, pack_damaged(record), overwrite=False, db=self._handles["damage"]
        )
        return added

    def _is_current(self, record: DamagedRecord) -> bool:
        if record.key is None:
            return True
        value = self._transaction.get(triple(record.key), db=self._handles["instances"])
        return value is not None and record_id_of(value) == record.record_id

    def forget(self, ids: Sequence[bytes]) -> int:
        """Returns how many of them were registered."""
        handle = self._handles["damage"]
        if not self._transaction.stat(handle)["entries"]:
            return 0
        return sum(self._transaction.delete(each, db=handle) for each in ids)
