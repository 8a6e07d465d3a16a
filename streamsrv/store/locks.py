"""Locks of instance keys: byte ranges of DATA/manifest, which each writer opens separately.

    range of the file        an exclusive lock on a byte means
    0 .. 2^62-1              the holder decides about the instance keys with this hash. The keys of one study
                             have the 30 bits above the lowest 32 in common, so one range locks the study
    2^62 + 2^61              the holder compacts

Open-file-description locks (F_OFD_SETLK; Linux) end with their last descriptor, even if the process is
killed. Threads exclude each other as processes do. The lock of a segment's one writer is a flock on the
segment file (see segments). So there is no lock file that someone can remove.

The *dirty* byte in a segment's slot of the manifest means that a writer may have made records valid that the
index does not have. It is set before, and cleared after. A writer that finds the dirty byte of a dead writer
cuts that segment back before it decides about any key. Without this, a record that was never acknowledged
could outlive a later record of the same key, and reindex would bring it back. Dirty bytes need not survive a
power loss: opening a store looks at every unsealed segment.

Rules of this file
- Keys are locked in ascending order of their hash and released together, so there is no deadlock.
- Two keys with one hash exclude each other. That costs waiting only.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable

import xxhash

from streamsrv.store.rows import InstanceKey
from streamsrv.store.segments.manifest import HEADER_LENGTH, SLOT, Manifest, Slot, slot_offset

KEYS = 0
STUDY = 1 << 32
END_OF_KEYS = 1 << 62
COMPACTION = END_OF_KEYS + (1 << 61)

# struct flock of 64-bit Linux: type, whence, start, length, pid (0 for such locks).
_FLOCK = struct.Struct("=hh4xqqi4x")


def study_offset(study: str) -> int:
    """Where the range of a study's keys begins."""
    return xxhash.xxh3_64_intdigest(study.encode()) >> 34 << 32


def key_offset(key: InstanceKey) -> int:
    """62 bits."""
    return study_offset(key.study) | xxhash.xxh3_64_intdigest("\0".join(key).encode()) >> 32


class Locks:
    """The locks of one writer. `close` releases all of them."""

    def __init__(self, manifest: Manifest) -> None:
        """StoreError if the manifest was removed or replaced."""
        self._ops = manifest.ops
        self._form = manifest.form
        self._fd = manifest.descriptor()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # Keys

    def lock(self, keys: Iterable[InstanceKey]) -> None:
        """Lock keys, waiting for other holders. More may be locked only after `release`."""
        for offset in sorted({key_offset(key) for key in keys}):
            self._wait(KEYS + offset)

    def try_lock_study(self, study: str) -> bool:
        """Lock all keys that the study has or may have; False if another writer holds one of them. Waiting
        could take forever while many writers store in the study."""
        return self._try(study_offset(study), STUDY)

    def release(self) -> None:
        """Unlock the keys."""
        self._unlock(KEYS, END_OF_KEYS)

    # Compaction

    def try_lock_compaction(self) -> bool:
        """Exclude other compactions until `close`; False if there is one."""
        return self._try(COMPACTION)

    # Slots of the manifest

    def slot(self, segment: int) -> tuple[bool, Slot | None]:
        """Whether the segment is dirty, and its slot; None if the slot is damaged."""
        raw = os.pread(self._fd, SLOT, slot_offset(segment)).ljust(SLOT, b"\0")
        return raw[0] != 0, self._form.unpack(segment, raw)

    def put(self, segment: int, slot: Slot) -> None:
        """Write a slot; clears the dirty byte."""
        self._ops.write(self._fd, [self._form.pack(segment, slot)], slot_offset(segment))

    def ensure(self, segment: int, slot: Slot) -> None:
        """Like `put`, but writes only if the slot differs."""
        if os.pread(self._fd, SLOT, slot_offset(segment)) != self._form.pack(segment, slot):
            self.put(segment, slot)

    def sync(self) -> None:
        self._ops.sync(self._fd)

    def set_dirty(self, segment: int) -> None:
        self._ops.write(self._fd, [b"\1"], slot_offset(segment))

    def dirty(self) -> list[int]:
        """The segments whose dirty byte is set, by living writers or dead ones."""
        length = os.fstat(self._fd).st_size - HEADER_LENGTH
        flags = os.pread(self._fd, length, HEADER_LENGTH)[::SLOT] if length > 0 else b""
        if flags.count(0) == len(flags):
            return []
        return [segment for segment, flag in enumerate(flags) if flag]

    # Locks

    def _try(self, offset: int, length: int = 1) -> bool:
        try:
            self._lock(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, offset, length)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES (POSIX)
            return False
        return True

    def _wait(self, offset: int) -> None:
        self._lock(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, offset, 1)

    def _unlock(self, offset: int, length: int) -> None:
        self._lock(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, offset, length)

    def _lock(self, command: int, kind: int, offset: int, length: int) -> None:
        fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, offset, length, 0))
