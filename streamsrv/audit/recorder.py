"""The audit trail in one worker: it takes entries from any thread, and writes them in a thread of its own.

Strategy: an entry that was made in this minute costs one look-up in a set. Others wait in a list. The thread
writes all that wait with one sync, and then those that have come meanwhile: stores that end together share a
sync. Entries that no request waits for gather for GATHER seconds.

A disk that is full or broken ends no request for reading: entries wait in memory, up to MOST, and the trail
says later how many were lost. Stores and deletes are refused meanwhile (`require`).
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from streamsrv.audit.entries import AuditEntry, EntryKey, Event, EventOutcome
from streamsrv.audit.trail import Trail
from streamsrv.errors import NO_SPACE, InsufficientStorage, Overloaded, ServerError, StreamsrvError

log = logging.getLogger("streamsrv.audit")

GATHER, RETRY = 0.1, 1.0  # seconds
MOST = 20_000  # entries
FULL = "the disk of the audit trail is full, so nothing can be stored or deleted"


class Patient(NamedTuple):
    patient_id: str = ""
    patient_name: str = ""


def unknown(study: str) -> Patient:
    return Patient()


class AuditRecorder:
    """`patient_of` finds the patient of a study; the thread calls it, and it may block."""

    def __init__(
        self,
        trail: Trail,
        patient_of: Callable[[str], Patient] = unknown,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self._trail = trail
        self._patient_of = patient_of
        self._turn = threading.Condition()
        self._waiting: list[AuditEntry] = []
        self._taken = 0  # entries that the thread is writing
        self._futures: list[Future[None]] = []
        self._noted: set[EntryKey] = set()  # of this minute
        self._durable: set[EntryKey] = set()
        self._minute = 0
        self._failure: ServerError | None = None
        self._lost = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Entries that are not written yet."""
        return len(self._waiting) + self._taken

    def note(self, entry: AuditEntry) -> None:
        """The entry is written soon, unless one with the same key was noted in this minute."""
        key = entry.key
        if key in self._noted:
            return
        with self._turn:
            self._note(entry, key, MOST)
            self._turn.notify()

    def record(self, entries: Sequence[AuditEntry]) -> Future[None] | None:
        """The future ends when the entries are on the disk; None if they are already. It raises
        InsufficientStorage or Overloaded."""
        keys = [entry.key for entry in entries]
        if all(key in self._durable for key in keys):
            return None
        with self._turn:
            for entry, key in zip(entries, keys, strict=True):
                self._note(entry, key, sys.maxsize)
            future: Future[None] = Future()
            self._futures.append(future)
            self._turn.notify()
        return future

    def require(self) -> None:
        """Raises InsufficientStorage or Overloaded if entries cannot be written now."""
        if self._failure is not None:
            raise self._failure
        if self._trail.is_tight:
            raise InsufficientStorage(FULL)

    def close(self) -> None:
        """Writes what waits."""
        with self._turn:
            self._closing = True
            self._turn.notify()
        self._thread.join()
        self._trail.close()

    def _note(self, entry: AuditEntry, key: EntryKey, most: int) -> None:
        minute = int(key[0])
        if not self._minute - 1 <= minute <= self._minute:  # the clock may be set back
            self._minute = minute
            self._noted, self._durable = set(), set()
        if key in self._noted:
            return
        if len(self._waiting) < most:
            self._noted.add(key)
            self._waiting.append(entry)
        else:
            self._lost += 1

    # The thread

    @property
    def _in_trouble(self) -> bool:
        return self._failure is not None or self._trail.is_tight

    def _run(self) -> None:
        ending = False
        while not ending:
            with self._turn:
                if self._in_trouble:
                    self._turn.wait_for(lambda: self._closing, RETRY)
                else:
                    self._turn.wait_for(lambda: self._waiting or self._futures or self._closing)
                    self._turn.wait_for(lambda: self._futures or self._closing, GATHER)
                entries, futures, lost = self._waiting, self._futures, self._lost
                self._waiting, self._futures, self._taken = [], [], len(entries)
                ending = self._closing
            self._write(entries, futures, lost)

    def _write(self, entries: list[AuditEntry], futures: list[Future[None]], lost: int) -> None:
        described = [self._described(entry) for entry in entries]
        if lost:
            what = Event.RECORDING_RESUMED, EventOutcome.MAJOR_FAILURE
            described.append(AuditEntry(self.clock(), *what, detail=f"lost={lost}"))
        try:
            self._trail.append(described)
        except OSError as error:
            self._failed(entries, refusal(error))
        else:
            self._written(entries, lost)
        for future in futures:
            if self._failure is None:
                future.set_result(None)
            else:
                future.set_exception(self._failure)

    def _failed(self, entries: list[AuditEntry], failure: ServerError) -> None:
        if self._failure is None:
            log.error("%s", failure.detail)
        self._failure = failure
        with self._turn:
            self._waiting, self._taken = entries + self._waiting, 0

    def _written(self, entries: list[AuditEntry], lost: int) -> None:
        if self._failure is not None:
            log.warning("the audit trail is written again; %d entries were lost", lost)
        self._failure = None
        with self._turn:
            self._lost -= lost
            self._taken = 0
            self._durable.update(key for entry in entries if (key := entry.key) in self._noted)

    def _described(self, entry: AuditEntry) -> AuditEntry:
        """With the patient of its study."""
        if not entry.study or entry.patient_id or entry.patient_name:
            return entry
        try:
            return entry._replace(**self._patient_of(entry.study)._asdict())
        except StreamsrvError:
            return entry


def refusal(error: OSError) -> ServerError:
    if error.errno in NO_SPACE:
        return InsufficientStorage(FULL)
    return Overloaded(f"the audit trail cannot be written ({error.strerror})", retry_after=5)
