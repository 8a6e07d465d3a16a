"""Checks that the bucket holds the bytes that were written, and that the database names them rightly.

Strategy: that of segment files (maintenance/check.py). Each object is copied from the bucket into a file
without a name, past the cache, and walked there. A record without a row is no finding: it was refused or
deleted, which the database alone knows.

Rules of this file: the store is not changed. It runs beside all nodes; compaction waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from streamsrv.errors import SegmentGone, StoreCorrupt
from streamsrv.store.cluster.store import ClusterStore
from streamsrv.store.index import Audit
from streamsrv.store.maintenance.check import (
    Checker,
    Derive,
    Finding,
    Severity,
    at,
    error,
    scratch_folder,
    wrong_payload,
)
from streamsrv.store.maintenance.objects.reading import copy_of
from streamsrv.store.objects.layout import walk_object
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments.records import Step
from streamsrv.store.segments.verifying import MISSING_OBJECT

LOST_TOMBSTONE = (
    "the bucket has lost this tombstone: if the database is lost, deleted instances return. "
    "`streamsrv check --segments` writes it again"
)


def check(store: ClusterStore, derive: Derive) -> Iterator[Finding]:
    """Yields findings; none means that all is well. Raises StoreLocked during a compaction."""
    with contextlib.ExitStack() as held:
        held.enter_context(store.rooms.table.excluding_compactions())
        scratch = held.enter_context(scratch_folder(store))
        audit = held.enter_context(contextlib.closing(Audit(store.index, scratch)))
        yield from ObjectChecker(store, derive, audit).run()


class ObjectChecker(Checker):
    def __init__(self, store: ClusterStore, derive: Derive, audit: Audit) -> None:
        super().__init__(store, derive, audit)
        self._rooms = store.rooms
        self._keys: dict[int, str] = {}

    def _places(self, rows: dict[int, SegmentRow]) -> Iterator[Finding]:
        found = {segment: (key, length) for segment, key, length in self._rooms.table.complete()}
        self._keys = {segment: key for segment, (key, _) in found.items()}
        for segment, row in rows.items():
            if segment not in found:
                if self._index.segment(segment) == row:
                    yield error(f"segment {segment}", "the table of objects does not have it")
            elif found[segment][1] != row.committed_end:
                what = f"the index has {row.committed_end} bytes, and its object {found[segment][1]}"
                yield error(f"segment {segment}", what)
        for segment in found:
            if segment not in rows and self._index.segment(segment) is None and self._is_complete(segment):
                yield error(f"segment {segment}", "no instance lives in its object, which is not condemned")
        for key in self._rooms.tombstones.lost():
            yield error(key, LOST_TOMBSTONE)

    def _is_complete(self, segment: int) -> bool:
        return segment in {each for each, _, _ in self._rooms.table.complete()}

    @contextlib.contextmanager
    def _opened(self, row: SegmentRow) -> Iterator[tuple[int, Iterator[Step]]]:
        key = self._keys.get(row.segment)
        if key is None:
            raise SegmentGone(f"segment {row.segment} is gone")
        with copy_of(self._rooms.bucket, key, row.committed_end, self._store.layout.root) as file:
            yield file.fileno(), walk_object(self._store.form, file.fileno(), row.segment, row.committed_end)

    def _segment(self, row: SegmentRow) -> Iterator[Finding]:
        if row.empty:
            return
        reason = ""
        try:
            with self._opened(row) as (fd, steps):
                self._payloads[row.segment] = self._others[row.segment] = 0
                for step in steps:
                    yield from self._step(fd, row.segment, step)
        except SegmentGone:
            reason = MISSING_OBJECT
        except StoreCorrupt as corrupt:
            reason = corrupt.detail
        if reason and self._index.segment(row.segment) is not None:
            yield error(f"segment {row.segment}", reason)
            self._unreadable(row.segment, 0, row.committed_end)

    def _lost(self) -> Iterator[Finding]:
        """Damaged records that a row names. The whole index is read, and only if there are any."""
        segments = {location.segment for location in self._damaged.values()}
        living = {row.record_id for row in self._index.instances_in(segments)} if segments else set()
        for record_id, location in self._damaged.items():
            if record_id in living:
                yield error(at(*location[:2]), wrong_payload(location))
            else:
                what = f"{wrong_payload(location)}; it was deleted or refused"
                yield Finding(Severity.NOTE, at(*location[:2]), what)

    def _counts(self, rows: dict[int, SegmentRow]) -> Iterator[Finding]:
        """Live bytes of the objects without changes since the check began."""
        for segment, row in self._segments().items():
            live = self._audit.live.get(segment, 0)
            if segment in self._payloads and rows.get(segment) == row and row.live != live:
                yield error(
                    f"index database segments, segment {segment}", f"live bytes are {row.live}, not {live}"
                )
