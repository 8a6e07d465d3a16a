"""The files of a node's cache that one process has open, and the limit of their folder.

Strategy: the least recently used files are removed when the folder is over its limit. The processes of a node
share the folder, and need not know each other.

Rules of this file
- The folder may be deleted at any moment: the next reader of a part begins a new file.
- A removed file takes space while it is open. So a process removes no file that it reads. It counts those
  that others have removed, and closes them after their last reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from streamsrv.errors import system_error
from streamsrv.store.objects.cached_file import CachedFile

# Files without a reader that stay open: the next request usually wants one of them.
MOST_IDLE = 64
# Removed ones of them are closed after this many seconds.
SWEEP = 5.0
# The folder is measured when this process has fetched this share of the limit, and then cut back by TO_FREE.
LOOK = 1 / 32
TO_FREE = 1 / 10

log = logging.getLogger("streamsrv.store")

PartKey: TypeAlias = tuple[int, int]  # segment, number of the part


class StoredObject(NamedTuple):
    """The place of a segment in the bucket."""

    key: str
    length: int


class FileUse(NamedTuple):
    """A file of the folder. `used` are nanoseconds since 1970."""

    used: int
    size: int
    path: str


class CacheFolder:
    """`limit` are bytes on the disk, `part` those of the part of an object."""

    def __init__(self, folder: Path, limit: int, part: int) -> None:
        self._folder = folder
        self._limit = limit
        self._part = part
        self._lock = threading.Lock()
        self._files: dict[PartKey, CachedFile] = {}  # those of the next readers
        self._idle: dict[CachedFile, None] = {}  # of them, those without a reader; the longest first
        self.in_use: set[CachedFile] = set()
        self._dead: list[CachedFile] = []  # to be closed without the lock: a removed file may take 1 ms
        self._timer: threading.Timer | None = None
        self._written = 0  # bytes since the folder was measured
        self._removing = threading.Lock()

    def close(self) -> None:
        """After the last reader."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            for file in list(self._idle):
                self._forget(file)
        self._close_dead()

    @property
    def is_crowded(self) -> bool:
        """Whether this process reads files of half of the limit."""
        return sum(file.length for file in tuple(self.in_use)) > self._limit // 2

    def take(self, segment: int, stored: StoredObject, number: int) -> CachedFile:
        """The file of a part, which stays open until `give_back`."""
        with self._lock:
            file = self._current(segment, stored, number)
            if file is not None:
                return self._taken(file)
        made = self._made(segment, stored, number)
        with self._lock:
            file = self._current(segment, stored, number)
            if file is None:
                file = self._files[segment, number] = made
            else:
                self._dead.append(made)
            self._taken(file)
        self._close_dead()
        return file

    def take_verified(
        self, segment: int, stored: StoredObject, number: int, chunks: range
    ) -> CachedFile | None:
        """The same, if this process has it open, and has compared these chunks."""
        with self._lock:
            file = self._files.get((segment, number))
            if file is None or file.key != stored.key or not file.verified.issuperset(chunks):
                return None
            return self._taken(file)

    def _current(self, segment: int, stored: StoredObject, number: int) -> CachedFile | None:
        file = self._files.get((segment, number))
        if file is not None and (file.key != stored.key or file.is_removed):
            self._forget(file)
            return None
        return file

    def _made(self, segment: int, stored: StoredObject, number: int) -> CachedFile:
        name = hashlib.blake2b(stored.key.encode(), digest_size=16).hexdigest()
        path = self._folder / name[:2] / f"{name}-{number:x}"
        start = number * self._part
        try:
            return CachedFile(path, segment, stored.key, start, min(self._part, stored.length - start))
        except OSError as error:
            raise system_error(error, "opening a file of the cache") from error

    def _taken(self, file: CachedFile) -> CachedFile:
        self._idle.pop(file, None)
        self.in_use.add(file)
        file.users += 1
        file.note_use()
        return file

    def give_back(self, file: CachedFile) -> None:
        with self._lock:
            file.users -= 1
            if file.users:
                return
            self.in_use.remove(file)
            if self._files.get(self._key_of(file)) is file:
                self._idle[file] = None
            else:
                self._dead.append(file)
            while len(self._idle) > MOST_IDLE:
                self._forget(next(iter(self._idle)))
            if self._timer is None and self._idle:
                self._wait()
        self._close_dead()

    def _forget(self, file: CachedFile) -> None:
        """The next reader opens another file."""
        del self._files[self._key_of(file)]
        if file not in self.in_use:
            del self._idle[file]
            self._dead.append(file)

    def _close_dead(self) -> None:
        if not self._dead:
            return
        with self._lock:
            dead, self._dead = self._dead, []
        for file in dead:
            file.close()

    def _key_of(self, file: CachedFile) -> PartKey:
        return file.segment, file.start // self._part

    def _wait(self) -> None:
        self._timer = threading.Timer(SWEEP, self._sweep)
        self._timer.daemon = True
        self._timer.start()

    def _sweep(self) -> None:
        """Close files that others have removed, as long as some are idle."""
        with self._lock:
            if self._timer is not threading.current_thread():
                return
            self._timer = None
            self._forget_removed()
            if self._idle:
                self._wait()
        self._close_dead()

    def _forget_removed(self) -> None:
        for file in [each for each in self._idle if each.is_removed]:
            self._forget(file)

    # The limit

    def used(self) -> int:
        """Bytes on the disk, with those of removed files that this process has open."""
        with self._lock:
            removed = [each.bytes_on_disk for each in (*self.in_use, *self._idle) if each.is_removed]
        return sum(removed) + sum(each.size for each in self._in_folder())

    def _in_folder(self) -> Iterator[FileUse]:
        with contextlib.suppress(FileNotFoundError):
            for folder in os.scandir(self._folder):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    for entry in os.scandir(folder):
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat()
                            yield FileUse(found.st_mtime_ns, found.st_blocks * 512, entry.path)

    def make_room(self, length: int) -> None:
        """So many bytes are to be written."""
        with self._lock:
            self._written += length
            if self._written < self._limit * LOOK:
                return
            self._written = 0
        used = self.used()
        if used > self._limit:
            self.free(used - int(self._limit * (1 - TO_FREE)))

    def free(self, length: int) -> None:
        """Remove the least recently used files, `length` bytes in all, without those that this process reads.
        A failure is logged: the answer goes on."""
        with self._removing:
            with self._lock:
                kept = {str(file.path) for file in self.in_use}
            try:
                for _, size, path in sorted(self._in_folder()):
                    if length <= 0:
                        break
                    if path not in kept:
                        Path(path).unlink(missing_ok=True)
                        length -= size
            except OSError as error:
                log.error("the cache cannot be cut back: %s", error.strerror)
            with self._lock:
                self._forget_removed()
            self._close_dead()
