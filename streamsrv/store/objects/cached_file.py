"""A part of an object in the cache of a node: a file that is filled chunk by chunk, and removed as a whole.

    0            the bytes of the part; a chunk that is not there is a hole
    n * CHUNK    the checks of the n chunks, 16 bytes each; zeros for a chunk that is not there

The check is xxh3-128 with a seed of the object's key and the chunk's number in the object. The time of change
of the file is that of its last use, at most USE_STEP seconds old.

Rules of this file
- A chunk is written before its check. So a process that dies leaves chunks that are whole, or not there.
  After a power loss the check tells.
- All processes write the same bytes to a chunk: those of the object. No file is cut, and no chunk is removed.
  So readers take no locks, and sendfile may lend pages to a socket.
- The name of a file may go at any moment. Its bytes stay as long as it is open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import xxhash

from streamsrv.store.fileops import Buffer

CHUNK = 64 << 10
CHECK = 16
USE_STEP = 10
_NO_CHECK = bytes(CHECK)

log = logging.getLogger("streamsrv.store")


class CachedFile:
    """The open file of a part of the object `key`: `length` bytes from `start` on. Offsets are those in the
    file. Threads may share it; the cache guards `flights` and `users`."""

    def __init__(self, path: Path, segment: int, key: str, start: int, length: int) -> None:
        """Makes the file if there is none. Raises OSError."""
        self.path = path
        self.segment = segment
        self.key = key
        self.start = start
        self.length = length
        self.verified: set[int] = set()  # chunks that were compared with their checks, or written
        self.flights: dict[int, Future[None]] = {}  # of chunks that are being fetched
        self.users = 0
        self._used = 0.0
        self._seed = xxhash.xxh3_64_intdigest(key.encode()) + start // CHUNK
        self.chunks = -(-length // CHUNK)
        size = self.chunks * (CHUNK + CHECK)
        self.fd = _opened(path)
        try:
            if os.fstat(self.fd).st_size not in (0, size):  # cut by another program
                path.unlink(missing_ok=True)
                old, self.fd = self.fd, _opened(path)
                os.close(old)
            os.ftruncate(self.fd, size)
        except OSError:
            self.close()
            raise

    @property
    def is_removed(self) -> bool:
        return os.fstat(self.fd).st_nlink == 0

    @property
    def bytes_on_disk(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def note_use(self) -> None:
        now = time.time()
        if abs(now - self._used) >= USE_STEP:
            self._used = now
            os.utime(self.fd, (now, now))

    def missing(self, chunks: Iterable[int]) -> list[int]:
        """Those of the chunks that are not there or not whole. The others are verified then."""
        unknown = [chunk for chunk in chunks if chunk not in self.verified]
        checks = os.pread(self.fd, self.chunks * CHECK, self.chunks * CHUNK) if unknown else b""
        found = []
        for chunk in unknown:
            check = checks[chunk * CHECK : (chunk + 1) * CHECK]
            if check == _NO_CHECK:
                found.append(chunk)
            elif self._hash(chunk, os.pread(self.fd, self._size_of(chunk), chunk * CHUNK)).digest() == check:
                self.verified.add(chunk)
            else:
                log.warning("a chunk of the cache is damaged, and is fetched again")
                found.append(chunk)
        return found

    def put(self, chunks: range, pieces: Iterable[Buffer]) -> None:
        """Write neighbours, then their checks. Raises OSError."""
        at, checks = chunks.start * CHUNK, list[bytes]()
        running = self._hash(chunks.start)
        for piece in pieces:
            left = memoryview(piece)
            _write(self.fd, left, at)
            while left:
                some, left = left[: CHUNK - at % CHUNK], left[CHUNK - at % CHUNK :]
                running.update(some)
                at += len(some)
                if at % CHUNK == 0 or at == self.length:
                    checks.append(running.digest())
                    running = self._hash(chunks.start + len(checks))
        os.pwrite(self.fd, b"".join(checks), self.chunks * CHUNK + chunks.start * CHECK)
        self.verified.update(chunks)

    def _size_of(self, chunk: int) -> int:
        return min(CHUNK, self.length - chunk * CHUNK)

    def _hash(self, chunk: int, content: Buffer = b"") -> xxhash.xxh3_128:
        return xxhash.xxh3_128(content, seed=(self._seed + chunk) % (1 << 64))

    def close(self) -> None:
        os.close(self.fd)


def _write(fd: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done:], offset + done)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags, 0o600)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, flags, 0o600)
