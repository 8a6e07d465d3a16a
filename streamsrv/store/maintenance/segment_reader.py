"""Reads a segment up to its committed end for a copy, and compares each payload with its digest meanwhile.

Strategy: the headers are walked through the page cache, because a damaged one needs a search. All bytes come
past the page cache, in order, so that pages of clients stay in it.

Rules of this file
- The pieces are all bytes of the segment, also the wrong ones. A page that cannot be read is zeros.
- Wrong bytes of a record that the index does not have are a note: it is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from streamsrv.store.maintenance.check import Finding, Severity, at, error
from streamsrv.store.maintenance.scrub import ALIGNMENT, STEP, UncachedFile
from streamsrv.store.rows import FIRST_RECORD, SegmentRow
from streamsrv.store.segments.records import (
    DamagedBytes,
    PayloadDigest,
    RecordKind,
    Step,
    pack_file_header,
)
from streamsrv.store.segments.verifying import WRONG_DIGEST, damaged_record, described
from streamsrv.store.store import Store

MOST_FINDINGS = 100  # of one segment that are named


class SegmentReader:
    """Raises FileNotFoundError if the segment has no file. `end` is the number of bytes that `pieces` has,
    less than the committed end if the file is too short. `modified` is in nanoseconds. Close it."""

    def __init__(self, store: Store, row: SegmentRow, taken: Callable[[int], None]) -> None:
        self._store = store
        self._segment = row.segment
        path = store.layout.segment(row.segment)
        self._headers = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._headers, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            self._file = UncachedFile(path, taken)
        except BaseException:
            os.close(self._headers)
            raise
        found = os.fstat(self._headers)
        self.modified = found.st_mtime_ns
        self.end = min(row.committed_end, found.st_size)
        self._committed_end = row.committed_end
        self._living: dict[int, str] | None = None  # offset of a payload -> its instance; once needed
        self._unreadable = -1  # end of the last range that could not be read
        self.findings: list[Finding] = []
        self.errors: list[tuple[int, str]] = []  # offset and text of those that are no notes

    def close(self) -> None:
        os.close(self._headers)
        self._file.close()

    def pieces(self) -> Iterator[bytes]:
        """All bytes, in their order. `findings` is complete behind the last one. A second call begins
        again."""
        self.findings, self.errors, self._unreadable = [], [], -1
        header = b"".join(self._range(0, min(FIRST_RECORD, self.end)))
        if header != pack_file_header(self._store.form, self._segment):
            self._error(0, "segment header: its checksum is wrong")
        yield header
        offset = len(header)
        for step in self._store.form.walk(self._headers, self._segment, self.end):
            yield from self._step(step)
            offset = step.end
        if offset < self.end:
            self._error(offset, "record header: pending, before the committed end")
            yield from self._range(offset, self.end)
        if self.end < self._committed_end:
            self._error(self.end, f"the file ends here, not at {self._committed_end}")
        if len(self.errors) > MOST_FINDINGS:
            more = len(self.errors) - MOST_FINDINGS
            self.findings.append(error(f"segment {self._segment}", f"{more} more findings"))

    def _step(self, step: Step) -> Iterator[bytes]:
        if isinstance(step, DamagedBytes):
            self._error(step.offset, f"record header: {step.reason}")
            yield from self._range(step.offset, step.end)
            return
        yield from self._range(step.offset, step.payload)
        running = PayloadDigest()
        for piece in self._range(step.payload, step.end):
            running.update(piece)
            yield piece
        kind = step.header.kind
        if kind in (RecordKind.INSTANCE, RecordKind.TOMBSTONE) and running.digest() != step.header.digest:
            self._wrong(step.payload, kind)

    def _wrong(self, payload: int, kind: RecordKind) -> None:
        if kind is RecordKind.TOMBSTONE:
            self._error(payload, f"tombstone: {WRONG_DIGEST}")
            return
        if self._living is None:
            rows = self._store.index.instances_in([self._segment])
            self._living = {row.location.offset: described(damaged_record(row, WRONG_DIGEST)) for row in rows}
        name = self._living.get(payload)
        if name:
            self._error(payload, name)
        elif len(self.findings) < MOST_FINDINGS:
            what = f"payload: {WRONG_DIGEST}; the index has no instance there"
            self.findings.append(Finding(Severity.NOTE, at(self._segment, payload), what))

    def _error(self, offset: int, what: str) -> None:
        found = error(at(self._segment, offset), what)
        self.errors.append((offset, found.what if len(self.errors) < MOST_FINDINGS else ""))
        if len(self.errors) <= MOST_FINDINGS:
            self.findings.append(found)

    def _range(self, begin: int, end: int) -> Iterator[bytes]:
        for start in range(begin, end, STEP):
            length = min(STEP, end - start)
            try:
                yield self._file.read(start, length)
            except OSError:
                yield self._by_pages(start, length)

    def _by_pages(self, start: int, length: int) -> bytes:
        """The bytes, with zeros for pages that cannot be read."""
        found, end = bytearray(), start + length
        while start < end:
            stop = min(start - start % ALIGNMENT + ALIGNMENT, end)
            try:
                found += self._file.read(start, stop - start, ahead=False)
            except OSError as failure:
                found += bytes(stop - start)
                if start != self._unreadable:
                    self._error(start, f"it cannot be read ({failure.strerror}): the backup has zeros")
                self._unreadable = stop
            start = stop
        return bytes(found)
