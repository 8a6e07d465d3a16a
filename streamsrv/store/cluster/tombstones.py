"""The deletions of a cluster in its bucket, so that they outlast a lost database.

Strategy: the database decides about deletions, and has a tombstone in the same transaction. A call that
deletes or replaces writes the waiting tombstones of its process to the bucket before it returns, together in
one object. If the bucket does not answer, the deletion holds all the same: a sweeper writes the tombstone
later. Requests do not try again for RETRY seconds.

Rules of this file
- A tombstone is never wrong: a record id is never used again. So two nodes may write the same one.
- A tombstone goes when the objects of its records are gone.
"""

from __future__ import annotations

import logging
import threading
import time

from streamsrv.errors import StoreError
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.objects.layout import TOMBSTONES, fresh_tombstone_key, tombstone_object
from streamsrv.store.postgresql.tombstone_table import TombstoneTable
from streamsrv.store.segments.records import RecordFormat

log = logging.getLogger("streamsrv.store")

MOST = 100  # tombstones in one object
# Another node that has not written its tombstone for so long may be dead. Seconds.
LEFT_BEHIND = 30.0
RETRY = 30.0  # seconds


class TombstoneWriter:
    """Thread-safe."""

    def __init__(self, table: TombstoneTable, bucket: Bucket, form: RecordFormat) -> None:
        self.table = table
        self._bucket = bucket
        self._form = form
        self._lock = threading.Lock()
        self._again_at = 0.0

    def write_own(self) -> None:
        """Write the tombstones of this node. A failure is logged: the database has them."""
        with self._lock:
            if time.monotonic() < self._again_at:
                return
            try:
                while self._write(LEFT_BEHIND) == MOST:
                    pass
            except StoreError as error:
                self._again_at = time.monotonic() + RETRY
                log.warning("a deletion is not yet noted in the bucket: %s", error)

    def write_all(self, others: float = LEFT_BEHIND) -> int:
        """Write all that wait, those of other nodes after `others` seconds. Returns their number. Raises
        BucketUnreachable, IndexUnreachable, StoreError."""
        number = 0
        with self._lock:
            while written := self._write(others):
                number += written
        return number

    def _write(self, others: float) -> int:
        found = self.table.waiting(MOST, others)
        if found:
            key = fresh_tombstone_key()
            ids = b"".join(each.records for each in found)
            self._bucket.put(key, tombstone_object(self._form, ids, time.time_ns() // 1_000))
            self.table.written([each.number for each in found], key)
        return len(found)

    def lost(self) -> list[str]:
        """The objects that the bucket has lost. It is listed: for tools."""
        keys = self.table.keys()
        keys -= {each.key for each in self._bucket.listed(TOMBSTONES)}
        return sorted(key for key in keys & self.table.keys() if not self._bucket.has(key))

    def remove_idle(self) -> int:
        """Remove the tombstones that nothing needs any more; returns the number of objects."""
        number = 0
        while keys := self.table.idle(MOST):
            for key in keys:
                self._bucket.remove(key)
                self.table.forget(key)
            number += len(keys)
        return number
