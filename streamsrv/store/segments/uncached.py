"""Reads a file past the page cache. So a scrub does not push out pages that clients use, and it reads the
disk instead of the memory.

Strategy: O_DIRECT, through one aligned window. On a file system without it: RWF_DONTCACHE (Linux 6.14).
Without both: a plain read, whose pages are dropped from the cache afterwards."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from streamsrv.store.fileops import RWF_DONTCACHE

WINDOW = 1 << 20  # bytes of one read
ALIGNMENT = 4096  # of offsets and memory; no disk wants more
_NOT_KNOWN = frozenset((errno.EINVAL, errno.EOPNOTSUPP))


class UncachedFile:
    """One file, open for reading. `loaded` is called with the bytes of each read of the disk."""

    def __init__(self, path: Path, loaded: Callable[[int], None] = lambda _: None) -> None:
        self._loaded = loaded
        self._direct = True
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
            self._direct = False
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
        self._window = mmap.mmap(-1, WINDOW)  # page-aligned
        self._start = self._end = 0  # of the file: the bytes in the window

    def close(self) -> None:
        os.close(self.fd)
        self._window.close()

    @property
    def length(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, length: int, *, ahead: bool = True) -> bytes:
        """At most WINDOW - ALIGNMENT bytes; fewer at the end of the file. Without `ahead`, reads only the
        blocks that hold these bytes."""
        if not self._start <= offset <= offset + length <= self._end:
            start = offset - offset % ALIGNMENT
            needed = offset + length - start
            self._load(start, WINDOW if ahead else needed + -needed % ALIGNMENT)
        start = offset - self._start
        return self._window[start : min(start + length, self._end - self._start)]

    def _load(self, start: int, length: int) -> None:
        self._start = self._end = start
        with memoryview(self._window) as whole, whole[:length] as view:
            count = self._read_into(view, start)
        self._end = start + count
        self._loaded(count)

    def _read_into(self, view: memoryview, start: int) -> int:
        if self._direct:
            return os.preadv(self.fd, [view], start)
        try:
            return os.preadv(self.fd, [view], start, RWF_DONTCACHE)
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise
        cached = self._is_cached(start)
        count = os.preadv(self.fd, [view], start)
        if not cached:
            os.posix_fadvise(self.fd, start, count, os.POSIX_FADV_DONTNEED)
        return count

    def _is_cached(self, start: int) -> bool:
        try:
            os.preadv(self.fd, [bytearray(1)], start, os.RWF_NOWAIT)
        except OSError:
            return False
        return True
