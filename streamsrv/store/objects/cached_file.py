"""One object in the cache of a node: a sparse file, in which each byte has its offset in the object.

    0            the bytes of the object, chunk by chunk; a chunk that is not there is a hole
    n * CHUNK    n entries of 32 bytes: check of the chunk (16 bytes), seconds of its last use (8), zero (8)

`n` follows from the length of the file. The check is xxh3-128 with a seed of the object's key and the chunk's
number. An entry of zeros is that of a hole.

Rules of this file
- A chunk is written before its entry, and its entry is cleared before it becomes a hole. So a process that
  dies leaves chunks that are whole, or not there. After a power loss the check tells.
- A reader holds a shared lock on the bytes of a chunk while it uses it; eviction takes an exclusive one.
  Locks belong to the open file (F_OFD_SETLK), so they end with the process.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

import xxhash

from streamsrv.store.fileops import Buffer

CHUNK = 128 << 10
ENTRY = 32
_ENTRY = struct.Struct("<16sQ8x")
_LOCK = struct.Struct("hhqqi4x")  # struct flock of Linux
_NO_CHECK = bytes(16)
_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
# An entry is written again for a later use after this many seconds.
USE_STEP = 60


class ChunkUse(NamedTuple):
    """A chunk that is there. `used` are seconds since 1970."""

    used: int
    path: Path
    chunk: int


class CachedFile:
    """The open file of one object. Threads may share it; offsets are those of the object."""

    def __init__(self, path: Path, key: str, length: int) -> None:
        """Makes the file if there is none. Raises OSError."""
        self.path = path
        self.length = length
        self.chunks = -(-length // CHUNK)
        self._seed = xxhash.xxh3_64_intdigest(key.encode())
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = self.chunks * (CHUNK + ENTRY)
        found = os.fstat(self.fd).st_size
        if found != size:  # new, or cut by another program: all entries are gone with the length
            if found:
                os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)

    @property
    def removed(self) -> bool:
        """Whether another process has removed its name."""
        return os.fstat(self.fd).st_nlink == 0

    def size_of(self, chunk: int) -> int:
        return min(CHUNK, self.length - chunk * CHUNK)

    def checks(self, first: int, count: int) -> list[bytes]:
        """The checks of chunks; empty for a hole. Notes that they are used."""
        raw = os.pread(self.fd, count * ENTRY, self._entry(first))
        found = [check for check, _ in _ENTRY.iter_unpack(raw.ljust(count * ENTRY, b"\0"))]
        now = int(time.time())
        for chunk, (check, used) in enumerate(_ENTRY.iter_unpack(raw), first):
            if check != _NO_CHECK and abs(now - used) > USE_STEP:
                os.pwrite(self.fd, _ENTRY.pack(check, now), self._entry(chunk))
        return [b"" if check == _NO_CHECK else check for check in found]

    def is_whole(self, chunk: int, check: bytes) -> bool:
        """Reads the chunk."""
        return self.check_of(chunk, os.pread(self.fd, self.size_of(chunk), chunk * CHUNK)) == check

    def check_of(self, chunk: int, content: Buffer) -> bytes:
        return xxhash.xxh3_128_digest(content, seed=(self._seed + chunk) % (1 << 64))

    def put(self, first: int, content: Buffer) -> list[bytes]:
        """Write neighbours, then their entries; returns their checks. Raises OSError."""
        view, done = memoryview(content), 0
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], first * CHUNK + done)
        pieces = (view[at : at + CHUNK] for at in range(0, len(view), CHUNK))
        checks = [self.check_of(chunk, piece) for chunk, piece in enumerate(pieces, first)]
        now = int(time.time())
        os.pwrite(self.fd, b"".join(_ENTRY.pack(check, now) for check in checks), self._entry(first))
        return checks

    def _entry(self, chunk: int) -> int:
        return self.chunks * CHUNK + chunk * ENTRY

    def pin(self, first: int, count: int) -> None:
        """Nothing evicts these chunks until `unpin`. Waits for an eviction of them."""
        lock_range(self.fd, fcntl.F_RDLCK, first * CHUNK, count * CHUNK, wait=True)

    def unpin(self, first: int, count: int) -> None:
        lock_range(self.fd, fcntl.F_UNLCK, first * CHUNK, count * CHUNK)

    def close(self) -> None:
        os.close(self.fd)


def lock_range(fd: int, kind: int, offset: int, length: int, *, wait: bool = False) -> bool:
    """False if another open file has a lock that conflicts."""
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(fd, command, _LOCK.pack(kind, os.SEEK_SET, offset, length, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def chunks_in(path: Path) -> list[ChunkUse]:
    """The chunks of a file of the cache; none if it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        chunks = os.fstat(fd).st_size // (CHUNK + ENTRY)
        raw = os.pread(fd, chunks * ENTRY, chunks * CHUNK)
    finally:
        os.close(fd)
    whole = raw[: len(raw) // ENTRY * ENTRY]
    return [
        ChunkUse(used, path, chunk)
        for chunk, (check, used) in enumerate(_ENTRY.iter_unpack(whole))
        if check != _NO_CHECK
    ]


def evict(path: Path, chunks: list[int]) -> int:
    """Make holes of these chunks, if no reader has them; removes the file if nothing is left. Returns the
    bytes of the chunks. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    freed = 0
    try:
        number = os.fstat(fd).st_size // (CHUNK + ENTRY)
        for chunk in chunks:
            if chunk < number and lock_range(fd, fcntl.F_WRLCK, chunk * CHUNK, CHUNK):
                os.pwrite(fd, bytes(ENTRY), number * CHUNK + chunk * ENTRY)
                _punch(fd, chunk * CHUNK, CHUNK)
                lock_range(fd, fcntl.F_UNLCK, chunk * CHUNK, CHUNK)
                freed += CHUNK
        if not chunks_in(path) and lock_range(fd, fcntl.F_WRLCK, 0, 0):
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
    return freed


def _punch(fd: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, _PUNCH, ctypes.c_long(offset), ctypes.c_long(length)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
