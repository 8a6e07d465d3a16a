"""Who may write what: byte-range locks on DATA/claims; each writer opens the file for itself.

    range of the file        meaning of an exclusive lock on a byte
    0 .. 2^62-1              the holder is deciding about the instance keys whose hash is this byte's offset;
                             those of one study have the 30 bits above the lowest 32 in common, so that a
                             range of bytes stands for all of it
    2^62 + segment           the holder has borrowed the segment: nobody else appends to it or cuts it
    2^62 + 2^61              the holder compacts

Open-file-description locks (F_OFD_SETLK; Linux) vanish with the last descriptor, whatever killed its process,
and all at once: whoever gets a dead writer's key can also get the segment that the writer had borrowed.
Threads exclude each other as processes do.

The contents of the file, one byte a segment, say where a writer *may* have made records valid that the index
does not know yet: the *doubt* byte is set before, and cleared after. Whoever finds the doubt of a writer that
has died cuts its segment back before it decides about any key. Without that, a record that was never
acknowledged could outlive, in its segment, a later one of the same key, and reindex would bring it back. The
contents need not survive a power loss: opening a store looks at every unsealed segment.

Rules of this file
- Keys are locked in ascending order of their hash and released together, so nobody waits in a circle.
- Two keys with one hash exclude each other: that costs waiting, never truth.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import xxhash

from streamsrv.store.fileops import FileOps
from streamsrv.store.rows import InstanceKey

KEYS = 0
STUDY = 1 << 32
SEGMENTS = 1 << 62
COMPACTION = SEGMENTS + (1 << 61)

# struct flock of 64-bit Linux: type, whence, start, length, pid (0 for such locks).
_FLOCK = struct.Struct("=hh4xqqi4x")


def study_offset(study: str) -> int:
    """Where the range of a study's keys begins. The same in every process."""
    return xxhash.xxh3_64_intdigest(study.encode()) >> 34 << 32


def key_offset(key: InstanceKey) -> int:
    """62 bits."""
    return study_offset(key.study) | xxhash.xxh3_64_intdigest("\0".join(key).encode()) >> 32


class Claims:
    """The locks of one writer. Closing it gives all of them up."""

    def __init__(self, path: Path, ops: FileOps) -> None:
        self._ops = ops
        try:
            self._fd = ops.open(path)
        except FileNotFoundError:
            self._fd = self._make(path)

    def _make(self, path: Path) -> int:
        try:
            return self._ops.create(path)
        except FileExistsError:  # another worker was first
            return self._ops.open(path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # Segments

    def borrow(self, segment: int) -> bool:
        """Get the segment unless another writer has it."""
        return self._try(SEGMENTS + segment)

    def borrow_waiting(self, segment: int) -> None:
        self._wait(SEGMENTS + segment)

    def give_back(self, segment: int) -> None:
        self._unlock(SEGMENTS + segment, 1)

    # Keys

    def take(self, keys: Iterable[InstanceKey]) -> None:
        """Wait until nobody else decides about any of the keys. Only after `release` may more be taken."""
        for offset in sorted({key_offset(key) for key in keys}):
            self._wait(KEYS + offset)

    def take_study(self, study: str) -> bool:
        """Get all keys that the study has or may have, unless somebody decides about one of them now. With
        many others at it that may never come about, so it is not waited for."""
        return self._try(study_offset(study), STUDY)

    def release(self) -> None:
        """Give up the keys; borrowed segments stay."""
        self._unlock(KEYS, SEGMENTS)

    # Compaction

    def compact(self) -> bool:
        """Be the only one who compacts, until closed."""
        return self._try(COMPACTION)

    # Doubt

    def set_doubt(self, segment: int) -> None:
        self._ops.write(self._fd, [b"\1"], segment)

    def clear_doubt(self, segment: int) -> None:
        self._ops.write(self._fd, [b"\0"], segment)

    def doubts(self) -> list[int]:
        """The segments whose doubt byte is set, by living writers or dead ones."""
        contents = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        if contents.count(0) == len(contents):
            return []
        return [segment for segment, doubt in enumerate(contents) if doubt]

    # Locks

    def _try(self, offset: int, length: int = 1) -> bool:
        try:
            self._lock(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, offset, length)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says POSIX
            return False
        return True

    def _wait(self, offset: int) -> None:
        self._lock(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, offset, 1)

    def _unlock(self, offset: int, length: int) -> None:
        self._lock(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, offset, length)

    def _lock(self, command: int, kind: int, offset: int, length: int) -> None:
        fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, length, 0))
