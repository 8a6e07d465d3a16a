"""Segments as writers see them: borrowed by one at a time, appended to, given back.

Strategy: a writer borrows a segment by a flock on its file, which dies with it. It finds the committed end in
the index *after* it has the lock, and cuts off the bytes behind: leftovers of a writer that died. It appends
behind that end, and bytes that are not committed when it gives the segment back are cut off again. A segment
that is over its size when borrowed is sealed instead, with a SEAL record: nothing is appended to it any
more.

Rules of this file
- After a failed sync the segment is sealed and never synced again: the kernel reports a lost page once, and
  success from then on. A full disk is no reason to seal one (see borrowed).
- A segment's id is never used twice, and what lies before its committed end never changes: a location names
  bytes for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from streamsrv.errors import NO_DESCRIPTORS, NO_SPACE, ServerError, StoreCorrupt, StoreError
from streamsrv.store.fileops import FileOps, write_all
from streamsrv.store.folder import Layout
from streamsrv.store.locks import Claims
from streamsrv.store.reserve import Reserve
from streamsrv.store.rows import FIRST_RECORD, SegmentRow
from streamsrv.store.segments import header as segment_header
from streamsrv.store.segments.borrowed import Borrowed, refused
from streamsrv.store.segments.leftovers import Leftovers
from streamsrv.store.segments.manifest import Manifest, Slot, State
from streamsrv.store.segments.records import HEADER, NO_DIGEST, NO_ID, Header, Kind, RecordFormat

log = logging.getLogger("streamsrv.store")

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
    def seal(self, segment: int, *, committed_end: int = 0, dead_bytes: int = 0) -> None: ...


class Segments:
    """All segments of a store, in one process."""

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        index: SegmentIndex,
        form: RecordFormat,
        ops: FileOps,
        segment_size: int,
        reserve: Reserve,
    ) -> None:
        self.ops = ops
        self._layout = layout
        self.manifest = manifest
        self._index = index
        self._form = form
        self.size = segment_size
        self._reserve = reserve
        self._leftovers = Leftovers(layout, index, form, ops)
        self._lock = threading.Lock()
        self._unsealed: list[int] = []  # those that may take more records, as far as we know
        self._listed = 0.0

    # Borrowing

    def require_space(self) -> None:
        """InsufficientStorage when less than the reserve is free: deletes, compaction and the index need room
        to work in."""
        self._reserve.require()

    def borrow(self, *, reserve: bool = False, tombstones: bool = False) -> Borrowed:
        """A segment to append to: one that nobody has, else a new one. With `reserve`, InsufficientStorage
        rather than fill the disk. For `tombstones` alone one that is full will do: to make a new one takes
        six more syncs, and they are short."""
        if reserve:
            self.require_space()
        claims = Claims(self.manifest)
        try:
            for segment in self._candidates():
                if borrowed := self._adopt(claims, segment, reserve, full=tombstones):
                    return borrowed
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
        """Borrow a segment that is there; None if another writer has it, or if it is sealed, gone or damaged,
        or full, unless it may be `full`."""
        fd = self._open_locked(segment)
        if fd is None:
            return None
        try:
            row = self._made_fit(fd, claims, segment, full=full)
        except OSError as error:
            os.close(fd)
            if error.errno in NO_SPACE:
                raise refused(error, "cutting back", segment) from error
            self.seal(segment)
            return None
        except BaseException:
            os.close(fd)
            raise
        if row is None:
            os.close(fd)
            self.forget(segment)
            return None
        return Borrowed(self, claims, row, fd, reserve)

    def _open_locked(self, segment: int) -> int | None:
        """The file of a segment, locked; None if another writer has it, or if it is gone."""
        try:
            fd = self.ops.open(self._layout.segment(segment))
        except FileNotFoundError:
            row = self._index.segment(segment)
            if row is None or row.sealed or not row.empty:
                self.forget(segment)
                return None
            try:  # its creator died between the index and the file
                fd = self._create_file(segment)
            except FileExistsError:
                return None  # another writer was first
        return fd if self._lock_file(fd) else None

    def _lock_file(self, fd: int, *, waiting: bool = False) -> bool:
        """Be its only writer, until the descriptor is closed; else it is closed at once."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        return True

    def _made_fit(self, fd: int, claims: Claims, segment: int, *, full: bool) -> SegmentRow | None:
        """Cut back, with a header, and known to the manifest; None if nothing can be appended."""
        row = self._index.segment(segment)
        if row is None or row.sealed:
            return None
        if row.empty:  # its creator may have died before all of it was durable
            self._make_durable(segment, fd, claims)
        length = os.fstat(fd).st_size
        if length < row.committed_end:
            return None
        row = self._leftovers.cut(fd, row, length, claims)
        if row.committed_end >= self.size and not full:
            self._seal_full(fd, row, claims)
            return None
        return row

    def _create(self, claims: Claims, reserve: bool) -> Borrowed:
        while True:
            segment = self._index.add_segment()
            try:
                fd = self._new_file(segment)
            except ServerError:
                with self._lock:
                    self._unsealed.append(segment)  # another borrower makes its file, when that can be
                raise
            if fd is not None and self._lock_file(fd):
                row = self._index.segment(segment)
                if row is not None and row.empty:
                    break
                os.close(fd)  # another writer was faster, and has stored in it
        try:
            self._make_durable(segment, fd, claims)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._unsealed.append(segment)
        return Borrowed(self, claims, SegmentRow(segment), fd, reserve)

    def _new_file(self, segment: int) -> int | None:
        """None if another writer has found the row, and was first; StoreCorrupt if the file is an old one."""
        with contextlib.suppress(FileExistsError):
            return self._create_file(segment)
        row = self._index.segment(segment)
        if row is not None and row.empty and self._is_strange(segment):
            if (fd := self._open_locked(segment)) is None:
                return None
            os.close(fd)
            raise StoreCorrupt(
                f"the index does not know the file of segment {segment}: run `streamsrv reindex`"
            )
        return None

    def _is_strange(self, segment: int) -> bool:
        """Whether the file has other bytes than a writer leaves that dies while it makes a segment."""
        with self._layout.segment(segment).open("rb") as file:
            found = file.read(FIRST_RECORD + 1)
        header = segment_header.pack(self._form, segment)
        return any(found) and not header.startswith(found)

    def _create_file(self, segment: int) -> int:
        """Raises FileExistsError."""
        try:
            return self.ops.create(self._layout.segment(segment))
        except FileExistsError:
            raise
        except OSError as error:
            raise refused(error, "creating", segment) from error

    def _make_durable(self, segment: int, fd: int, claims: Claims) -> None:
        """Header, name and slot of a segment are on the disk before anything in it can be committed. If the
        disk is full the next borrower does it again."""
        try:
            write_all(self.ops, fd, [segment_header.pack(self._form, segment)], 0)
            self.ops.sync(fd)
            self.ops.sync_folder(self._layout.segments)
            claims.ensure(segment, Slot(State.GROWING, FIRST_RECORD))
            claims.sync()
        except OSError as error:
            if error.errno not in NO_SPACE | NO_DESCRIPTORS:
                self.seal(segment)
            raise refused(error, "creating", segment) from error

    def _seal_full(self, fd: int, row: SegmentRow, claims: Claims) -> None:
        """With a SEAL record, so that its acknowledged end is known even without index and manifest."""
        header = Header(Kind.SEAL, NO_ID, 0, 0, NO_DIGEST, row.committed_end)
        end = row.committed_end + HEADER
        write_all(self.ops, fd, [self._form.pack(header, row.segment, row.committed_end)], row.committed_end)
        self.ops.sync(fd)
        self._index.seal(row.segment, committed_end=end, dead_bytes=HEADER)
        claims.put(row.segment, Slot(State.SEALED, end))
        claims.sync()

    def seal_growing(self, segment: int, *, waiting: bool) -> bool:
        """Nothing is appended to it from here on, because it will be compacted; False if a writer has it, and
        that is not waited for."""
        fd = self.ops.open(self._layout.segment(segment))
        if not self._lock_file(fd, waiting=waiting):
            return False
        claims = Claims(self.manifest)
        try:
            row = self._index.segment(segment)
            if row is not None and not row.sealed:
                row = self._leftovers.cut(fd, row, os.fstat(fd).st_size, claims)
                self.seal(segment)
                claims.put(segment, Slot(State.SEALED, row.committed_end))
        finally:
            claims.close()
            os.close(fd)
        return True

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
                try:
                    self._cut_if_free(segment, own.claims)
                except OSError as error:
                    raise refused(error, "cutting back", segment) from error

    def settle_all(self) -> None:
        """Cut back every segment that no writer has: when a store is opened. One that cannot be cut now, on a
        full disk for example, is left as it is."""
        claims = Claims(self.manifest)
        try:
            with self._lock:
                self.refresh()
                unsealed = list(self._unsealed)
            for segment in unsealed:
                try:
                    self._cut_if_free(segment, claims)
                except OSError as error:
                    log.error("segment %d cannot be cut back: %s", segment, error.strerror)
        finally:
            claims.close()

    def _cut_if_free(self, segment: int, claims: Claims) -> None:
        """Nothing to do if its writer lives, or its next one has cut it back."""
        try:
            fd = self.ops.open(self._layout.segment(segment))
        except FileNotFoundError:
            return
        if not self._lock_file(fd):
            return
        try:
            row = self._index.segment(segment)
            if row is not None:
                self._leftovers.cut(fd, row, os.fstat(fd).st_size, claims)
        finally:
            os.close(fd)
