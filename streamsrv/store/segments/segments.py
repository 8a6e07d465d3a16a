"""Segments as writers see them. One writer at a time acquires a segment, appends to it and releases it.

Strategy: a writer holds a flock on the file, which ends with its process. It reads the committed end from the
index after it has the lock, and cuts off the bytes behind it: they belong to a writer that died. On release,
bytes that are not committed are cut off again. A segment over its size is sealed with a SEAL record instead
of acquired.

Rules of this file
- Before a record in the file can be valid, the dirty flag of its segment is set. It is cleared when the index
  has the record, or when the record has been cut off and the cut is synced.
- After a failed sync a segment is sealed and never synced again: the kernel reports a lost page once, and
  success from then on. A full disk is an exception: the pages that found no room are behind `committed`, and
  are cut off.
- A segment's id is never used twice, and bytes before its committed end never change: a location stays valid.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence

from streamsrv.errors import NO_DESCRIPTORS, NO_SPACE, ServerError, StoreCorrupt, StoreError, system_error
from streamsrv.store.fileops import Buffer, FileOps, copy_all, write_all
from streamsrv.store.folder import Layout, Reserve
from streamsrv.store.index import Index
from streamsrv.store.locks import Locks
from streamsrv.store.rows import FIRST_RECORD, SegmentRow
from streamsrv.store.segments.leftovers import Leftovers
from streamsrv.store.segments.manifest import Manifest, Slot, State
from streamsrv.store.segments.records import (
    HEADER,
    NO_DIGEST,
    NO_ID,
    RecordFormat,
    RecordHeader,
    RecordKind,
    pack_file_header,
)

log = logging.getLogger("streamsrv.store")

# A segment is one file: one inode for some thousand instances, and short enough to compact quickly.
SEGMENT_SIZE = 1 << 30
LIST_AGE = 1.0  # seconds between two looks for new segments of other processes
SPACE_CHECK = 64 << 20  # bytes appended between two looks at the free space


class Clock:
    """Microseconds since 1970, UTC; never the same value twice."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def now(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000)
            return self._last


class SegmentWriter:
    """A segment that this writer alone appends to. Always release it."""

    def __init__(self, owner: Segments, locks: Locks, row: SegmentRow, fd: int, reserve: bool) -> None:
        self.segment = row.segment
        self.fd = fd
        self.locks = locks
        self.committed = row.committed_end  # the headers of this request's records name it
        self.end = row.committed_end  # offset of the next byte
        self.unsynced = 0
        self.clock = owner.clock
        self._reach = row.committed_end  # length of the file: `end` may have been set back since
        self._owner = owner
        self._ops = owner.ops
        self._dirty = False
        self._failed: OSError | None = None  # of a sync
        self._reserve = reserve
        self._next_space_check = row.committed_end + SPACE_CHECK
        self._guard = threading.Lock()  # a sync may run in another thread; the descriptor must stay open

    def append(self, pieces: Sequence[Buffer], *, keep: bool = True) -> None:
        """Write at the end; with `keep` the page cache keeps the bytes. Raises InsufficientStorage if the
        disk is full or falls under the reserve."""
        try:
            length = write_all(self._ops, self.fd, pieces, self.end, keep=keep)
        except OSError as error:
            self._reach = os.fstat(self.fd).st_size
            raise refused(error, "writing to", self.segment) from error
        self._grown(length)
        if self._reserve and self.end >= self._next_space_check:
            self._next_space_check = self.end + SPACE_CHECK
            self._owner.reserve.require()

    def append_copy(self, source: int, offset: int, length: int) -> None:
        """Append bytes of another file within the kernel."""
        try:
            copy_all(self._ops, source, offset, self.fd, self.end, length)
        except OSError as error:
            self._reach = os.fstat(self.fd).st_size
            raise refused(error, "copying to", self.segment) from error
        self._grown(length)

    def _grown(self, length: int) -> None:
        self.end += length
        self.unsynced += length
        self._reach = max(self._reach, self.end)

    def overwrite(self, header: bytes, offset: int) -> None:
        try:
            write_all(self._ops, self.fd, [header], offset)
        except OSError as error:
            raise refused(error, "writing to", self.segment) from error

    def mark_dirty(self) -> None:
        """From now on the file may have valid records that the index does not have."""
        if not self._dirty:
            self.locks.set_dirty(self.segment)
            self._dirty = True

    def sync(self) -> None:
        """Bring all appended bytes to the disk. May run in a thread beside `append`."""
        with self._guard:
            if self.fd < 0:
                return
            if self._failed:
                raise StoreError(f"segment {self.segment} could not be synced before")
            self.unsynced = 0
            try:
                self._ops.sync(self.fd)
            except OSError as error:
                self._failed = error
                raise refused(error, "syncing", self.segment) from error

    def commit_up_to(self, end: int) -> None:
        """Note in the manifest that the index durably has everything before `end`."""
        self.committed = end
        self._dirty = False
        self.locks.put(self.segment, Slot(State.GROWING, end))

    def release(self) -> None:
        """Cut off bytes that are not committed, and unlock the segment. Safe to call twice."""
        with self._guard:
            if self.fd < 0:
                return
            try:
                if self._is_broken():
                    self._owner.seal(self.segment)
                self._cut()
            except (OSError, ServerError):
                # The next writer cuts it; until then the dirty flag stays set.
                self._owner.forget(self.segment)
            finally:
                os.close(self.fd)
                self.fd = -1
                self.locks.close()

    def _is_broken(self) -> bool:
        return self._failed is not None and self._failed.errno not in NO_SPACE

    def _cut(self) -> None:
        if self._dirty:
            # The commit failed. Only the index knows whether it reached the disk.
            self.committed = self._owner.committed_end(self.segment)
        if self._reach > self.committed:
            self._ops.truncate(self.fd, self.committed)
        if self._dirty:
            if not self._is_broken():
                self._ops.sync(self.fd)
            state = State.SEALED if self._is_broken() else State.GROWING
            self.locks.put(self.segment, Slot(state, self.committed))


def refused(error: OSError, doing: str, segment: int) -> ServerError:
    """The error for the client of a system call on a segment that failed."""
    return system_error(error, f"{doing} segment {segment}")


class Segments:
    """All segments of a store, in one process."""

    def __init__(
        self,
        layout: Layout,
        manifest: Manifest,
        index: Index,
        form: RecordFormat,
        ops: FileOps,
        segment_size: int,
        reserve: Reserve,
    ) -> None:
        self.ops = ops
        self.manifest = manifest
        self.size = segment_size
        self.reserve = reserve
        self.clock = Clock()
        self._layout = layout
        self._index = index
        self._form = form
        self._leftovers = Leftovers(layout, index, form, ops)
        self._lock = threading.Lock()
        self._unsealed: list[int] = []  # as far as this process knows
        self._listed = 0.0

    def acquire(self, *, reserve: bool = False, tombstones: bool = False) -> SegmentWriter:
        """A segment to append to: one that has no writer, else a new one. With `reserve`, raises
        InsufficientStorage rather than fill the disk. For `tombstones` a full segment will do: they are
        short, and a new segment takes six more syncs."""
        if reserve:
            self.reserve.require()
        locks = Locks(self.manifest)
        try:
            for segment in self._candidates():
                if writer := self._acquire_existing(locks, segment, reserve, full=tombstones):
                    return writer
            return self._create(locks, reserve)
        except BaseException:
            locks.close()
            raise

    def _candidates(self) -> Iterable[int]:
        """Known segments in a fixed order, so that few of them grow; then those of other processes."""
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

    def _acquire_existing(
        self, locks: Locks, segment: int, reserve: bool, *, full: bool
    ) -> SegmentWriter | None:
        """None if the segment has a writer, is sealed, gone or damaged, or is over its size and not allowed
        to be `full`."""
        fd = self._open_locked(segment)
        if fd is None:
            return None
        try:
            row = self._prepare(fd, locks, segment, full=full)
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
        return SegmentWriter(self, locks, row, fd, reserve)

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
                return None  # another writer was faster
        return fd if self._lock_file(fd) else None

    def _lock_file(self, fd: int, *, waiting: bool = False) -> bool:
        """Lock a file until its descriptor is closed. Closes it and returns False if another writer has
        it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        return True

    def _prepare(self, fd: int, locks: Locks, segment: int, *, full: bool) -> SegmentRow | None:
        """Cut a segment back and enter it in the manifest; None if nothing can be appended to it."""
        row = self._index.segment(segment)
        if row is None or row.sealed:
            return None
        if row.empty:  # its creator may have died before all of it was durable
            self._make_durable(segment, fd, locks)
        length = os.fstat(fd).st_size
        if length < row.committed_end:
            return None
        row = self._leftovers.cut(fd, row, length, locks)
        if row.committed_end >= self.size and not full:
            self._seal_full(fd, row, locks)
            return None
        return row

    def _create(self, locks: Locks, reserve: bool) -> SegmentWriter:
        while True:
            segment = self._index.add_segment()
            try:
                fd = self._new_file(segment)
            except ServerError:
                with self._lock:
                    self._unsealed.append(segment)  # another writer makes its file when that is possible
                raise
            if fd is not None and self._lock_file(fd):
                row = self._index.segment(segment)
                if row is not None and row.empty:
                    break
                os.close(fd)  # another writer was faster, and has stored in it
        try:
            self._make_durable(segment, fd, locks)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._unsealed.append(segment)
        return SegmentWriter(self, locks, SegmentRow(segment), fd, reserve)

    def _new_file(self, segment: int) -> int | None:
        """None if another writer was faster; StoreCorrupt if there is an old file with this name."""
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
        """Whether the file has other bytes than those of a writer that died while it made the segment."""
        with self._layout.segment(segment).open("rb") as file:
            found = file.read(FIRST_RECORD + 1)
        header = pack_file_header(self._form, segment)
        return any(found) and not header.startswith(found)

    def _create_file(self, segment: int) -> int:
        """Raises FileExistsError."""
        try:
            return self.ops.create(self._layout.segment(segment))
        except FileExistsError:
            raise
        except OSError as error:
            raise refused(error, "creating", segment) from error

    def _make_durable(self, segment: int, fd: int, locks: Locks) -> None:
        """Bring header, name and slot of a segment to the disk before anything in it is committed. If the
        disk is full, the next writer does it again."""
        try:
            write_all(self.ops, fd, [pack_file_header(self._form, segment)], 0)
            self.ops.sync(fd)
            self.ops.sync_folder(self._layout.segments)
            locks.ensure(segment, Slot(State.GROWING, FIRST_RECORD))
            locks.sync()
        except OSError as error:
            if error.errno not in NO_SPACE | NO_DESCRIPTORS:
                self.seal(segment)
            raise refused(error, "creating", segment) from error

    def _seal_full(self, fd: int, row: SegmentRow, locks: Locks) -> None:
        """A SEAL record proves the acknowledged end even without index and manifest."""
        header = RecordHeader(RecordKind.SEAL, NO_ID, 0, 0, NO_DIGEST, row.committed_end)
        end = row.committed_end + HEADER
        write_all(self.ops, fd, [self._form.pack(header, row.segment, row.committed_end)], row.committed_end)
        self.ops.sync(fd)
        self._index.seal(row.segment, committed_end=end, dead_bytes=HEADER)
        locks.put(row.segment, Slot(State.SEALED, end))
        locks.sync()

    def seal_growing(self, segment: int, *, waiting: bool) -> bool:
        """Seal a segment for its compaction; False if it has a writer and that is not waited for."""
        fd = self.ops.open(self._layout.segment(segment))
        if not self._lock_file(fd, waiting=waiting):
            return False
        locks = Locks(self.manifest)
        try:
            row = self._index.segment(segment)
            if row is not None and not row.sealed:
                row = self._leftovers.cut(fd, row, os.fstat(fd).st_size, locks)
                self.seal(segment)
                locks.put(segment, Slot(State.SEALED, row.committed_end))
        finally:
            locks.close()
            os.close(fd)
        return True

    def committed_end(self, segment: int) -> int:
        row = self._index.segment(segment)
        if row is None:
            raise StoreError(f"segment {segment} is not in the index")
        return row.committed_end

    def seal(self, segment: int) -> None:
        """No process appends to it again."""
        self.forget(segment)
        self._index.seal(segment)

    def forget(self, segment: int) -> None:
        """This process does not try it again."""
        with self._lock:
            if segment in self._unsealed:
                self._unsealed.remove(segment)

    # Recovery

    def recover(self, own: SegmentWriter) -> None:
        """Cut back the segments of writers that died while the index did not have their valid records."""
        for segment in own.locks.dirty():
            if segment != own.segment:
                try:
                    self._cut_if_free(segment, own.locks)
                except OSError as error:
                    raise refused(error, "cutting back", segment) from error

    def recover_all(self) -> None:
        """Cut back every segment that has no writer: when a store is opened. A segment that cannot be cut
        now, on a full disk for example, is left as it is."""
        locks = Locks(self.manifest)
        try:
            with self._lock:
                self.refresh()
                unsealed = list(self._unsealed)
            for segment in unsealed:
                try:
                    self._cut_if_free(segment, locks)
                except OSError as error:
                    log.error("segment %d cannot be cut back: %s", segment, error.strerror)
        finally:
            locks.close()

    def _cut_if_free(self, segment: int, locks: Locks) -> None:
        """Does nothing if the segment has a living writer."""
        try:
            fd = self.ops.open(self._layout.segment(segment))
        except FileNotFoundError:
            return
        if not self._lock_file(fd):
            return
        try:
            row = self._index.segment(segment)
            if row is not None:
                self._leftovers.cut(fd, row, os.fstat(fd).st_size, locks)
        finally:
            os.close(fd)
