"""A segment in the hands of its one writer: append, rewrite headers, sync, give back.

Rules of this file
- Nothing behind `committed` is kept when the segment is given back.
- Before a record in the file can be valid, the doubt is set; it is cleared when the index knows the record,
  or when it has been cut off and the cut is synced.
- After a failed sync the segment is sealed and never synced again: the kernel reports a lost page once, and
  success from then on. If the disk was full it is not sealed: the pages that found no room are behind
  `committed`, and are cut off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Protocol

from streamsrv.errors import NO_SPACE, ServerError, StoreError, system_error
from streamsrv.store.fileops import Buffer, FileOps, copy_all, write_all
from streamsrv.store.locks import Claims
from streamsrv.store.rows import SegmentRow
from streamsrv.store.segments.manifest import Slot, State

# Free space is looked at each time so much has been appended.
SPACE_CHECK = 64 << 20


class Owner(Protocol):
    """All segments of the store (see segments)."""

    ops: FileOps

    def require_space(self) -> None: ...
    def committed_end(self, segment: int) -> int: ...
    def seal(self, segment: int) -> None: ...
    def forget(self, segment: int) -> None: ...


class Borrowed:
    """A segment that this writer alone appends to. Give it back, whatever happened."""

    def __init__(self, owner: Owner, claims: Claims, row: SegmentRow, fd: int, reserve: bool) -> None:
        self.segment = row.segment
        self.fd = fd
        self.claims = claims
        self.committed = row.committed_end  # also where the request begins, for the headers of its records
        self.end = row.committed_end  # where the next byte goes
        self.unsynced = 0
        self._reach = row.committed_end  # the file's length: `end` may have been set back since
        self._owner = owner
        self._ops = owner.ops
        self._doubtful = False
        self._failed: OSError | None = None  # of a sync
        self._reserve = reserve
        self._next_space_check = row.committed_end + SPACE_CHECK
        self._guard = threading.Lock()  # a sync may run in a thread; the descriptor must outlive it

    def append(self, pieces: Sequence[Buffer], *, keep: bool = True) -> None:
        """Write behind the end, and `keep` it in the page cache. InsufficientStorage when the disk is full or
        falls under the reserve."""
        try:
            length = write_all(self._ops, self.fd, pieces, self.end, keep=keep)
        except OSError as error:
            self._reach = os.fstat(self.fd).st_size
            raise refused(error, "writing to", self.segment) from error
        self._grown(length)
        if self._reserve and self.end >= self._next_space_check:
            self._next_space_check = self.end + SPACE_CHECK
            self._owner.require_space()

    def append_copy(self, source: int, offset: int, length: int) -> None:
        """Append bytes of another segment without reading them."""
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

    def set_back(self, end: int) -> None:
        """Forget what was appended from `end` on; the next bytes overwrite it."""
        self.end = end

    def overwrite(self, header: bytes, offset: int) -> None:
        try:
            write_all(self._ops, self.fd, [header], offset)
        except OSError as error:
            raise refused(error, "writing to", self.segment) from error

    def doubt(self) -> None:
        """Valid records may be in the file, from now on, that the index does not know."""
        if not self._doubtful:
            self.claims.set_doubt(self.segment)
            self._doubtful = True

    def sync(self) -> None:
        """All that was appended is on the disk. May run in a thread beside `append`, and while the index is
        being written: a segment whose sync has failed is sealed when it is given back."""
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
        """The index has durably taken everything before `end`. The manifest takes note."""
        self.committed = end
        self._doubtful = False
        self.claims.put(self.segment, Slot(State.GROWING, end))

    def give_back(self) -> None:
        """Cut off what is not committed, and let others have the segment. Safe to call twice."""
        with self._guard:
            if self.fd < 0:
                return
            try:
                if self._is_broken():
                    self._owner.seal(self.segment)
                self._cut()
            except (OSError, ServerError):
                # Left as it is: the next borrower cuts it, and until then the doubt stays for others to see.
                self._owner.forget(self.segment)
            finally:
                os.close(self.fd)
                self.fd = -1
                self.claims.close()

    def _is_broken(self) -> bool:
        return self._failed is not None and self._failed.errno not in NO_SPACE

    def _cut(self) -> None:
        if self._doubtful:
            # The commit failed: whether it reached the disk, only the index can tell.
            self.committed = self._owner.committed_end(self.segment)
        if self._reach > self.committed:
            self._ops.truncate(self.fd, self.committed)
        if self._doubtful:
            if not self._is_broken():
                self._ops.sync(self.fd)
            state = State.SEALED if self._is_broken() else State.GROWING
            self.claims.put(self.segment, Slot(state, self.committed))


def refused(error: OSError, doing: str, segment: int) -> ServerError:
    """The error for the client of a system call on a segment that failed."""
    return system_error(error, f"{doing} segment {segment}")
