"""Locks of instances: byte ranges of DATA/manifest, which each writer opens for itself.

    range of the file        meaning of an exclusive lock on a byte
    0 .. 2^62-1              the holder is deciding about the instance keys whose hash is this byte's offset;
                             those of one study have the 30 bits above the lowest 32 in common, so that a
                             range of bytes stands for all of it
    2^62 + 2^61              the holder compacts

Open-file-description locks (F_OFD_SETLK; Linux) vanish with the last descriptor, whatever killed its process.
Threads exclude each other as processes do. The lock of a segment's one writer is a flock on the segment file
itself (see segments), which lies where the bytes lie: there is no lock file that can be tidied away.

The *doubt* byte in a segment's slot of the manifest says that a writer *may* have made records valid that the
index does not know yet: it is set before, and cleared after. A writer that finds the doubt of one that has
died cuts its segment back before it decides about any key. Without that, a record that was never
acknowledged could outlive, in its segment, a later one of the same key, and reindex would bring it back.
Doubts need not survive a power loss: opening a store looks at every unsealed segment.

Rules of this file
- Keys are locked in ascending order of their hash and released together, so nobody waits in a circle.
- Two keys with one hash exclude each other: that costs waiting, never truth.
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
    """Where the range of a study's keys begins. The same in every process."""
    return xxhash.xxh3_64_intdigest(study.encode()) >> 34 << 32


def key_offset(key: InstanceKey) -> int:
    """62 bits."""
    return study_offset(key.study) | xxhash.xxh3_64_intdigest("\0".join(key).encode()) >> 32


class Claims:
    """The locks of one writer. Closing it gives all of them up."""

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

    def take(self, keys: Iterable[InstanceKey]) -> None:
        """Wait until nobody else decides about any of the keys. Only after `release` may more be taken."""
        for offset in sorted({key_offset(key) for key in keys}):
            self._wait(KEYS + offset)

    def take_study(self, study: str) -> bool:
        """Get all keys that the study has or may have, unless somebody decides about one of them now. With
        many others at it that may never come about, so it is not waited for."""
        return self._try(study_offset(study), STUDY)

    def release(self) -> None:
        """Give up the keys."""
        self._unlock(KEYS, END_OF_KEYS)

    # Compaction

    def compact(self) -> bool:
        """Be the only one who compacts, until closed."""
        return self._try(COMPACTION)

    # Slots of the manifest

    def slot(self, segment: int) -> tuple[bool, Slot | None]:
        """Whether there is doubt, and the slot; None if it is damaged."""
        raw = os.pread(self._fd, SLOT, slot_offset(segment)).ljust(SLOT, b"\0")
        return raw[0] != 0, self._form.unpack(segment, raw)

    def put(self, segment: int, slot: Slot) -> None:
        """Also clears the doubt."""
        self._ops.write(self._fd, [self._form.pack(segment, slot)], slot_offset(segment))

    def ensure(self, segment: int, slot: Slot) -> None:
        """As `put`, but writes only if the slot differs."""
        if os.pread(self._fd, SLOT, slot_offset(segment)) != self._form.pack(segment, slot):
            self.put(segment, slot)

    def sync(self) -> None:
        self._ops.sync(self._fd)

    def set_doubt(self, segment: int) -> None:
        self._ops.write(self._fd, [b"\1"], slot_offset(segment))

    def doubts(self) -> list[int]:
        """The segments whose doubt byte is set, by living writers or dead ones."""
        length = os.fstat(self._fd).st_size - HEADER_LENGTH
        bytes_of_doubt = os.pread(self._fd, length, HEADER_LENGTH)[::SLOT] if length > 0 else b""
        if bytes_of_doubt.count(0) == len(bytes_of_doubt):
            return []
        return [segment for segment, doubt in enumerate(bytes_of_doubt) if doubt]

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
