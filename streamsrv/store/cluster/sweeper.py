"""The sweeper: removes objects that nothing needs any more.

Strategy: each worker of each node has one, in a thread that wakes up now and then. A sweeper claims objects
that are due, so two never remove the same. It may die: then another one claims them after CLAIM seconds. If
the bucket does not answer, they wait for the next of WAITS. It also writes the tombstones that are left.

Rules of this file
- An object is due by the clock of the database. The bucket is never listed.
- An object is removed twice, AGAIN seconds apart. A gateway may carry out a request late, of which the node
  had no answer: it then has repeated it, or given the upload up. And a node that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading

from streamsrv.errors import StoreError
from streamsrv.store.cluster.tombstones import TombstoneWriter
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.postgresql.object_table import ObjectTable

log = logging.getLogger("streamsrv.store")

MOST = 100  # objects of one claim
CLAIM = 300.0  # seconds
AGAIN = 86_400.0  # seconds
# After the first, the second and each later failure, in seconds: half of the time, up to all of it.
WAITS = (5.0, 30.0, CLAIM)
LONGEST_PAUSE = 60.0  # seconds


def sweep(table: ObjectTable, bucket: Bucket, wait: float = WAITS[0]) -> int:
    """Remove the objects that are due; returns their number. After a failure the others are due again in
    `wait` seconds. Raises BucketUnreachable, IndexUnreachable, StoreError."""
    number = 0
    while found := table.claim(MOST, CLAIM):
        for done, each in enumerate(found):
            try:
                bucket.remove(each.key)
            except StoreError:
                with contextlib.suppress(StoreError):
                    table.put_off([left.segment for left in found[done:]], wait)
                raise
            table.removed(each.segment, 0 if each.was == "swept" else AGAIN)
        number += len(found)
    return number


class Sweeper:
    """Sweeps again and again, until `close`. `soonest` is the shortest time in seconds after which an object
    may be due."""

    def __init__(
        self, table: ObjectTable, bucket: Bucket, tombstones: TombstoneWriter, soonest: float
    ) -> None:
        self._table = table
        self._tombstones = tombstones
        self._failures = 0  # one after the other
        self._bucket = bucket
        self._pause = min(max(soonest / 4, 0.2), LONGEST_PAUSE)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = self._pause
        # Sweepers of many nodes start together, and should not go on so.
        while not self._end.wait(pause * random.uniform(0.5, 1.5)):
            wait = WAITS[min(self._failures, len(WAITS) - 1)] * random.uniform(0.5, 1)
            try:
                self._round(wait)
                self._failures, pause = 0, self._pause
            except StoreError as error:
                self._failures, pause = self._failures + 1, min(wait, self._pause)
                log.warning("sweeper: %s", error)

    def _round(self, wait: float) -> None:
        """Does both, also if one of them fails. Raises StoreError then."""
        try:
            self._tombstones.write_all()
        finally:
            if number := sweep(self._table, self._bucket, wait):
                log.info("sweeper: objects removed: %d", number)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
