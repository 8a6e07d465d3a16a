"""The sweeper: removes objects that nothing needs any more.

Strategy: each worker of each node has one, in a thread that wakes up now and then. A sweeper claims objects
that are due, so two never remove the same. It may die: then another one claims them after CLAIM seconds.

Rules of this file
- An object is due by the clock of the database. The bucket is never listed.
- The object of an intent is removed twice, AGAIN seconds apart: a node that was stopped while it uploaded may
  complete the object after the first time.
"""

from __future__ import annotations

import logging
import random
import threading

from streamsrv.errors import StoreError
from streamsrv.store.objects.bucket import Bucket
from streamsrv.store.postgresql.object_table import ObjectTable

log = logging.getLogger("streamsrv.store")

MOST = 100  # objects of one claim
CLAIM = 300.0  # seconds
AGAIN = 86_400.0  # seconds
LONGEST_PAUSE = 60.0  # seconds


def sweep(table: ObjectTable, bucket: Bucket) -> int:
    """Remove the objects that are due; returns their number. Raises BucketUnreachable, IndexUnreachable,
    StoreError."""
    number = 0
    while found := table.claim(MOST, CLAIM):
        for each in found:
            bucket.remove(each.key)
            table.removed(each.segment, AGAIN if each.was == "intent" else 0)
        number += len(found)
    return number


class Sweeper:
    """Sweeps again and again, until `close`. `soonest` is the shortest time in seconds after which an object
    may be due."""

    def __init__(self, table: ObjectTable, bucket: Bucket, soonest: float) -> None:
        self._table = table
        self._bucket = bucket
        self._pause = min(max(soonest / 4, 0.2), LONGEST_PAUSE)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # Sweepers of many nodes start together, and should not go on so.
        while not self._end.wait(self._pause * random.uniform(0.5, 1.5)):
            try:
                if number := sweep(self._table, self._bucket):
                    log.info("sweeper: %d objects were removed", number)
            except StoreError as error:
                log.warning("sweeper: %s", error)

    def close(self) -> None:
        self._end.set()
        self._thread.join()
