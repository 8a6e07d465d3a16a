"""Decides between two records of one SOP instance: the stored one and the new one.

Rules of this file
- An instance is refused as a duplicate only after its stored bytes have been read and are whole. If they are
  damaged or missing, the new bytes take their place for every `on_duplicate`.
- Stored bytes that the system cannot read now may be whole: they stay, unless they are registered as damaged.
- The caller has locked the key of the instance, so the stored record is neither moved nor removed.
"""

from __future__ import annotations

import logging

from streamsrv.errors import SegmentGone
from streamsrv.store.index import Index
from streamsrv.store.rows import InstanceRow, OnDuplicate, Outcome
from streamsrv.store.segments.leases import Readers
from streamsrv.store.segments.records import Record, RecordFormat
from streamsrv.store.segments.verifying import MISSING_SEGMENT, damage_of, damaged_record, described

log = logging.getLogger("streamsrv.store")

COMPARE_WINDOW = 1 << 20


class Duplicates:
    def __init__(self, readers: Readers, index: Index, form: RecordFormat) -> None:
        self._readers = readers
        self._index = index
        self._form = form

    def outcome(
        self,
        new: Record,
        first: Record | InstanceRow | None,
        row: InstanceRow | None,
        on_duplicate: OnDuplicate,
    ) -> Outcome:
        """`first` is a record of the same instance earlier in the request, `row` the instance as stored."""
        other = first or row
        if other is None:
            return Outcome.STORED
        if on_duplicate is OnDuplicate.ACCEPT_IDENTICAL and self._identical(new, other):
            return Outcome.IDENTICAL
        if first is not None or row is None:
            return Outcome.DUPLICATE
        replaces = on_duplicate is OnDuplicate.REPLACE or self._is_damaged(row)
        return Outcome.REPLACED if replaces else Outcome.DUPLICATE

    def _identical(self, new: Record, other: Record | InstanceRow) -> bool:
        """Compares digests first, then every byte."""
        segment, offset, length = other.location
        if other.digest != new.digest or length != new.location.length:
            return False
        try:
            with self._readers.open([segment]) as lease:
                return all(
                    new.pread(at, COMPARE_WINDOW)
                    == lease.pread(segment, offset + at, min(COMPARE_WINDOW, length - at))
                    for at in range(0, length, COMPARE_WINDOW)
                )
        except (SegmentGone, OSError):
            return False  # `_is_damaged` looks again

    def _is_damaged(self, row: InstanceRow) -> bool:
        found = self._index.damaged_among([row.record_id])
        if not found:
            reason = self._damage(row)
            found = [damaged_record(row, reason)] if reason else []
        for record in found:
            log.error("damaged, and stored again: %s", described(record))
        return bool(found)

    def _damage(self, row: InstanceRow) -> str:
        segment = row.location.segment
        try:
            with self._readers.open([segment]) as lease:
                return damage_of(self._form, lease.fd(segment), row)
        except SegmentGone:
            return MISSING_SEGMENT
        except OSError as error:
            log.error("instance %s cannot be read: %s", "/".join(row.key), error.strerror)
            return ""
