"""Segments as writers see them: borrowed by one at a time, appended to, given back.

Strategy: a writer borrows a segment (a lock that dies with it, see claims), finds its committed end in the
index *after* it has the lock, and cuts off what lies behind: the leftovers of a writer that died. It appends
behind that end, and whatever it has not committed when it gives the segment back is cut off again. A segment
that is over its size when borrowed is sealed instead: nobody appends to it any more.

Rules of this file
- What is cut off and may hold valid records is synced at once: a cut that a power loss undoes would bring
  them back.
- After a failed sync the segment is sealed and never synced again: the kernel reports a lost page once, and
  success from then on.
- A segment's id is never used twice, and what lies before its committed end never changes: a location names
  bytes for ever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from streamsrv.errors import InsufficientStorage, StoreCorrupt, StoreError
from streamsrv.store import segment_header
from streamsrv.store.borrowed import Borrowed, refused
from streamsrv.store.claims import Claims
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Layout
from streamsrv.store.records import Found, RecordFormat
from streamsrv.store.rows import SegmentRow

# A segment is one file: an inode for some thousand instances, and small enough that compacting one is short.
SEGMENT_SIZE = 1 << 30
# Others' new segments are looked for at most so often (seconds): with many segments the list is long.
LIST_AGE = 1.0


class SegmentIndex(Protocol):
    """What segments need of the index."""

    def catch_up(self) -> None: ...
    def segment(self, segment: int) -> SegmentRow | None: ...
    def segments(self) -> dict[int, SegmentRow]: ...
    def add_segment(self) -> int: ...
    def seal(self, segment: int) -> None: ...


class Segments:
    """All segments of a store, in one process."""

    def __init__(
        self,
        layout: Layout,
        index: SegmentIndex,
        form: RecordFormat,
        ops: FileOps,
        segment_size: int,
        min_free: int | None,
    ) -> None:
        self.ops = ops
        self._layout = layout
        self._index = index
        self._form = form
        self.size = segment_size
        self._min_free = min_free
        self._lock = threading.Lock()
        self._unsealed: list[int] = []  # those that may take more records, as far as we know
        self._listed = 0.0

    # Borrowing

    def require_space(self) -> None:
        """InsufficientStorage when less than the reserve is free: deletes, compaction and the index need room
        to work in."""
        free, total = self.ops.space(self._layout.root)
        reserve = min(1 << 30, total // 50) if self._min_free is None else self._min_free
        if free < reserve:
            raise InsufficientStorage(f"less than {reserve} bytes are free on the disk of the store")

    def borrow(self, *, reserve: bool = False, tombstones: bool = False) -> Borrowed:
        """A segment to append to: one that nobody has, else a new one. With `reserve`, InsufficientStorage
        rather than fill the disk. For `tombstones` alone one that is full will do: to make a new one takes
        six more syncs, and they are short."""
        if reserve:
            self.require_space()
        claims = Claims(self._layout.claims, self.ops)
        try:
            for segment in self._candidates():
                if claims.borrow(segment):
                    borrowed = self._adopt(claims, segment, reserve, full=tombstones)
                    if borrowed:
                        return borrowed
                    claims.give_back(segment)
            return self._create(claims, reserve)
        except BaseException:
            claims.close()
            raise

    def _candidates(self) -> Iterable[int]:
        """Known segments first, always in the same order so that few of them grow; then what others have
        made."""
        with self._lock:
            known = list(self._unsealed)
        yield from known
        if time.monotonic() - self._listed > LIST_AGE:
            with self._lock:
                self.refresh()
                fresh = [segment for segment in self._unsealed if segment not in known]
            yield from fresh

    def refresh(self) -> None:
        rows = self._index.segments().values()
        self._unsealed = sorted(row.segment for row in rows if not row.sealed)
        self._listed = time.monotonic()

    def _adopt(self, claims: Claims, segment: int, reserve: bool, *, full: bool) -> Borrowed | None:
        """Make a segment whose lock we have fit for appending; None if it is sealed, gone or damaged, or
        full, unless it may be `full`."""
        row = self._index.segment(segment)
        if row is None or row.sealed:
            self.forget(segment)
            return None
        if row.committed_end >= self.size and not full:
            self.seal(segment)
            return None
        fd = self._open_for_writing(row)
        if fd is None:
            self.forget(segment)
            return None
        try:
            row = self._cut_back(fd, row, claims)
        except OSError:
            os.close(fd)
            self.seal(segment)
            return None
        except BaseException:
            os.close(fd)
            raise
        return Borrowed(self, claims, row, fd, reserve)

    def _open_for_writing(self, row: SegmentRow) -> int | None:
        try:
            fd = self.ops.open(self._layout.segment(row.segment))
        except FileNotFoundError:
            # Its maker died between the index and the file.
            return self._create_file(row.segment) if row.empty else None
        if row.empty:  # its creator may have died before header and name were durable
            self._make_durable(row.segment, fd)
        if os.fstat(fd).st_size < row.committed_end:
            os.close(fd)
            return None
        return fd

    def _cut_back(self, fd: int, row: SegmentRow, claims: Claims) -> SegmentRow:
        """Returns the row by which it was cut: its writer may have died in a commit that we had not seen."""
        length = os.fstat(fd).st_size
        if length > row.committed_end:
            self._index.catch_up()
            row = self._index.segment(row.segment) or row
        if length > row.committed_end:
            self._require_one_request(fd, row, length)
            self.ops.truncate(fd, row.committed_end)
            if not row.sealed:
                self.ops.sync(fd)
        claims.clear_doubt(row.segment)
        return row

    def _require_one_request(self, fd: int, row: SegmentRow, length: int) -> None:
        """What died uncommitted is one request. A later one shows that the index is older than the segment:
        a copy that was brought back, say. What it does not know is not to be destroyed then."""
        for step in self._form.walk(fd, row.segment, length, start=row.committed_end):
            if isinstance(step, Found) and step.header.began > row.committed_end:
                raise StoreCorrupt(
                    f"segment {row.segment} holds requests that the index does not know, from byte "
                    f"{step.header.began} on: the index is an older one, run `streamsrv reindex`"
                )

    def _create(self, claims: Claims, reserve: bool) -> Borrowed:
        while True:
            segment = self._index.add_segment()
            if claims.borrow(segment):
                break
        fd = self._create_file(segment)
        with self._lock:
            self._unsealed.append(segment)
        return Borrowed(self, claims, SegmentRow(segment), fd, reserve)

    def _create_file(self, segment: int) -> int:
        try:
            fd = self.ops.create(self._layout.segment(segment))
        except FileExistsError:
            raise StoreCorrupt(f"segment {segment} has a file that the index does not know") from None
        except OSError as error:
            raise refused(error, "creating", segment) from error
        self._make_durable(segment, fd)
        return fd

    def _make_durable(self, segment: int, fd: int) -> None:
        """Header and name of a segment are on the disk before anything in it can be committed."""
        try:
            write_all(self.ops, fd, [segment_header.pack(self._form, segment)], 0)
            self.ops.sync(fd)
            self.ops.sync_folder(self._layout.segments)
        except OSError as error:
            os.close(fd)
            self.seal(segment)
            raise refused(error, "creating", segment) from error

    def committed_end(self, segment: int) -> int:
        row = self._index.segment(segment)
        if row is None:
            raise StoreError(f"segment {segment} is not in the index")
        return row.committed_end

    def seal(self, segment: int) -> None:
        """Nobody appends to it any more."""
        self.forget(segment)
        self._index.seal(segment)

    def forget(self, segment: int) -> None:
        """This process does not try it again."""
        with self._lock:
            if segment in self._unsealed:
                self._unsealed.remove(segment)

    # Leftovers of the dead

    def settle(self, own: Borrowed) -> None:
        """Cut back the segments of writers that died while the index did not know their valid records yet."""
        for segment in own.claims.doubts():
            if segment != own.segment:
                self._cut_if_free(segment, own.claims)

    def settle_all(self) -> None:
        """Cut back every segment that nobody has borrowed: when a store is opened."""
        claims = Claims(self._layout.claims, self.ops)
        try:
            with self._lock:
                self.refresh()
                unsealed = list(self._unsealed)
            for segment in unsealed:
                self._cut_if_free(segment, claims)
        finally:
            claims.close()

    def _cut_if_free(self, segment: int, claims: Claims) -> None:
        if not claims.borrow(segment):
            return  # its writer lives, or its next one has cut it back
        try:
            row = self._index.segment(segment)
            if row is not None and self._layout.segment(segment).exists():
                fd = self.ops.open(self._layout.segment(segment))
                try:
                    self._cut_back(fd, row, claims)
                finally:
                    os.close(fd)
        finally:
            claims.give_back(segment)
