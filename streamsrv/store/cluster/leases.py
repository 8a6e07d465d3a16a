"""The intents of this process, renewed while their transactions run.

Strategy: one thread renews all of them, several times within the length of a lease. A node that is stopped or
cut off renews nothing. Then another node removes the object, and the commit of the first is refused.
"""

from __future__ import annotations

import logging
import threading

from streamsrv.errors import StoreError
from streamsrv.store.postgresql.object_table import ObjectTable

log = logging.getLogger("streamsrv.store")

# Renewals within one lease.
RENEWALS = 4


class IntentKeeper:
    """Thread-safe. A lease is `seconds` long."""

    def __init__(self, table: ObjectTable, seconds: float) -> None:
        self.seconds = seconds
        self._table = table
        self._held: set[int] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, segment: int) -> None:
        with self._lock:
            self._held.add(segment)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="intents", daemon=True)
                self._thread.start()

    def let_go(self, segment: int) -> None:
        with self._lock:
            self._held.discard(segment)

    def _renew(self) -> None:
        while not self._end.wait(self.seconds / RENEWALS):
            with self._lock:
                held = list(self._held)
            try:
                if held:
                    self._table.renew(held, self.seconds)
            except StoreError as error:
                log.warning("uploads that are under way cannot be renewed: %s", error)

    def close(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
