"""The files of the audit trail, and how several processes append to one chain.

    FOLDER/00000001.jsonl   entries, one JSON object a line; the next file begins when one has `file_size`
    FOLDER/head             number and chain of the last entry that is on the disk
    FOLDER/sent             the cursor of the process that sends entries to a syslog receiver (cursor.py)

Strategy: a flock on the folder is held while lines are linked and written, not while they are synced. A sync
covers all lines before it, also those of other processes. So the processes write in turn and sync at the same
time. A writer first reads the lines that others have appended: it continues their chain, and leaves out
entries that they have made already.

Rules of this file
- `head` is written after the sync. So entries behind it may be missing after a power loss, and entries up to
  it may not. A cut at the end contradicts `head`.
- A process that is killed within a write leaves a torn line. The next writer ends that line and adds an entry
  with its length and digest, so that a check tells it from a change.
- Bytes behind the end of the file are allocated before they are needed. Entries that requests wait for still
  find room on a full disk; meanwhile `is_tight` asks to refuse stores.
- An old file is removed as a whole, and an entry with its last number and chain says so.
- Files are for their owner only (0600): they hold names of patients.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from streamsrv.audit.chain import GENESIS, ChainLink, digest, linked, parsed, unlinked
from streamsrv.audit.entries import AuditEntry, EntryKey, Event
from streamsrv.errors import NO_SPACE

# Bytes that are allocated behind the end of a file, and the rest at which more are.
ALLOCATED, SCARCE = 1 << 20, 512 << 10
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of fallocate(2)
_NOT_POSSIBLE = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))
# Bytes at the end of a file that a new writer reads: mostly the entries of the last minutes.
TAIL = 256 << 10
DAY = 86_400.0  # seconds
HEAD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")


class TrailLimits(NamedTuple):
    """A file ends at `file_size` bytes. It is removed `keep_days` days after its last entry; 0: never. With
    `keep_unsent` only files before the cursor are removed."""

    file_size: int = 64 << 20
    keep_days: float = 0.0
    keep_unsent: bool = False


def files_of(folder: Path) -> dict[int, Path]:
    """The files of a trail by number, ascending."""
    paths = folder.glob("*.jsonl") if folder.is_dir() else ()
    return dict(sorted((int(path.stem), path) for path in paths if path.stem.isdecimal()))


def name_of(number: int) -> str:
    return f"{number:08d}.jsonl"


def head_of(folder: Path) -> ChainLink | None:
    """None if there is no head, or it is unreadable."""
    try:
        found = HEAD.fullmatch((folder / "head").read_bytes())
    except FileNotFoundError:
        return None
    return ChainLink(int(found[1]), found[2].decode()) if found else None


def sent_file(folder: Path) -> int:
    """The file in which the cursor stands; 0 if there is no cursor."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, IndexError):
        return int(orjson.loads((folder / "sent").read_bytes())[0])
    return 0


@contextlib.contextmanager
def locked(folder: Path, kind: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Nothing is appended meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


class Trail:
    """The trail of a folder, for one process that appends to it. Thread-safe."""

    def __init__(self, folder: Path, limits: TrailLimits | None = None) -> None:
        self.folder = folder
        self.is_tight = False  # the disk has no room for the bytes of further entries
        self._limits = limits or TrailLimits()
        self._turn = threading.Lock()
        self._lock_fd = self._fd = self._head_fd = -1
        self._number = 0  # of the open file
        self._end = 0  # bytes of it that were read
        self._allocated = 0
        self._is_distrusted = False  # a sync of the open file has failed
        self._last = GENESIS
        self._minute = 0
        self._seen: set[EntryKey] = set()  # of that minute

    def append(self, entries: Sequence[AuditEntry]) -> int:
        """Appends and syncs the entries that no process has made in their minute; returns their number.
        Blocks. Raises OSError; then none of them is in the trail."""
        with self._turn:
            with self._locked():
                self._catch_up()
                count = self._write(entries)
                fd, last = self._fd, self._last
            self._sync(fd, entries)
            with self._locked():
                self._advance_head(last)
            return count

    def _sync(self, fd: int, entries: Sequence[AuditEntry]) -> None:
        """After an error the next sync of the file may falsely succeed. So the entries go to a new file."""
        try:
            os.fdatasync(fd)
        except OSError:
            self._is_distrusted = True
            self._seen.difference_update(entry.key for entry in entries)
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock_fd < 0:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            self._lock_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    # Reading the lines of other processes

    def _catch_up(self) -> None:
        if self._fd >= 0 and os.fstat(self._fd).st_nlink:
            self._read()
            if not (self.folder / name_of(self._number + 1)).exists():
                return
        files = files_of(self.folder)
        newest = max(files, default=0)
        if not files:
            self._last = max(self._last, head_of(self.folder) or GENESIS)
            self._begin_file(1)
        elif self._fd < 0 or newest != self._number or not os.fstat(self._fd).st_nlink:
            self._open(os.open(files[newest], os.O_RDWR | os.O_CLOEXEC), newest)
            self._begin_at_tail(files.get(newest - 1))
            self._read()

    def _begin_at_tail(self, former: Path | None) -> None:
        """The next read begins with the last lines of the file. If these are all, they continue `former`."""
        size = os.fstat(self._fd).st_size
        if size > TAIL:
            self._end = size - TAIL + os.pread(self._fd, TAIL, size - TAIL).find(b"\n") + 1
        elif former is not None:
            self._last = last_link(former) or self._last

    def _read(self) -> None:
        """Takes over the lines behind `_end`."""
        size = os.fstat(self._fd).st_size
        if size < self._end:  # lines were cut off: the chain shows it
            begin = max(0, size - TAIL)
            self._end = begin + os.pread(self._fd, size - begin, begin).rfind(b"\n") + 1
        if size == self._end:
            return
        if size - self._end > TAIL:  # by other processes, in months
            self._begin_at_tail(None)
        whole, line_feed, torn = os.pread(self._fd, size - self._end, self._end).rpartition(b"\n")
        for line in (whole + line_feed).splitlines(keepends=True):
            self._take(line)
        self._end = size
        if torn:
            self._put(b"\n")
            torn = b"" if self._took_last(torn + b"\n") else torn
        self._last = max(self._last, head_of(self.folder) or GENESIS)
        if torn:
            detail = f"bytes={len(torn)} sha256={hashlib.sha256(torn).hexdigest()}"
            self._put_entries([AuditEntry(time.time(), Event.LINE_TORN, detail=detail)])

    def _took_last(self, line: bytes) -> bool:
        """Whether the line, whose writer died before its line feed, is the next entry."""
        found = unlinked(line)
        if found is None or found[1] != digest(self._last.chain, found[0]):
            return False
        self._take(line)
        return True

    def _take(self, line: bytes) -> None:
        found = parsed(line)
        if found is not None:
            self._last = ChainLink(found[0]["n"], found[1])
            with contextlib.suppress(ValueError, KeyError):
                self._see(AuditEntry.of(found[0]).key)

    def _see(self, key: EntryKey) -> None:
        minute = int(key[0])
        if not self._minute - 1 <= minute <= self._minute:  # the clock may be set back
            self._minute = minute
            self._seen = {each for each in self._seen if minute - 1 <= int(each[0]) <= minute}
        self._seen.add(key)

    # Writing

    def _write(self, entries: Sequence[AuditEntry]) -> int:
        new: dict[EntryKey, AuditEntry] = {}
        for entry in entries:
            if entry.key not in self._seen:
                new.setdefault(entry.key, entry)
        self._allocate()
        if new:
            if self._is_distrusted or self._end >= self._limits.file_size:
                self._rotate()
            self._put_entries(list(new.values()))
            for key in new:
                self._see(key)
        return len(new)

    def _put_entries(self, entries: Sequence[AuditEntry]) -> None:
        last, lines = self._last, []
        for entry in entries:
            line, last = linked(last, entry.text(last.number + 1))
            lines.append(line)
        self._put(b"".join(lines))
        self._last = last

    def _put(self, text: bytes) -> None:
        """Writes all or nothing."""
        done = 0
        try:
            while done < len(text):
                done += os.pwrite(self._fd, text[done:], self._end + done)
        except OSError:
            os.ftruncate(self._fd, self._end)
            self._allocated = 0
            raise
        self._end += len(text)

    def _allocate(self) -> None:
        if self._allocated - self._end >= SCARCE:
            return
        try:
            allocate(self._fd, self._end, ALLOCATED)
        except OSError as error:
            if error.errno in NO_SPACE:
                self.is_tight = True
                return
            if error.errno not in _NOT_POSSIBLE:
                raise
        self.is_tight = False
        self._allocated = self._end + ALLOCATED

    def _advance_head(self, link: ChainLink) -> None:
        if self._head_fd < 0:
            self._head_fd = self._made("head")
        found = HEAD.fullmatch(os.pread(self._head_fd, 128, 0))
        if found is None or int(found[1]) < link.number:
            os.pwrite(self._head_fd, b"%020d %s\n" % (link.number, link.chain.encode()), 0)

    # Files

    def _rotate(self) -> None:
        if not self._is_distrusted:
            os.fdatasync(self._fd)
        os.ftruncate(self._fd, self._end)  # gives back the allocated bytes
        self._begin_file(self._number + 1)
        self._is_distrusted = False
        self._allocate()
        self._remove_old()

    def _begin_file(self, number: int) -> None:
        self._open(self._made(name_of(number), os.O_EXCL), number)
        os.fsync(self._lock_fd)

    def _open(self, fd: int, number: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._number, self._end, self._allocated = fd, number, 0, 0

    def _made(self, name: str, flags: int = 0) -> int:
        """A file of the owner of the folder, also if root makes it."""
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
        owner = os.fstat(self._lock_fd)
        if os.geteuid() == 0 and owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        return fd

    def _remove_old(self) -> None:
        """The entry is on the disk before a file is removed."""
        if not self._limits.keep_days:
            return
        oldest = time.time() - self._limits.keep_days * DAY
        unsent = sent_file(self.folder) if self._limits.keep_unsent else self._number
        old = []
        for number, path in files_of(self.folder).items():
            if number >= min(unsent, self._number) or path.stat().st_mtime > oldest:
                break
            old.append(path)
        link = last_link(old[-1]) if old else None
        if link is not None:
            detail = f"last={link.number} chain={link.chain}"
            self._put_entries([AuditEntry(time.time(), Event.FILES_REMOVED, detail=detail)])
            os.fdatasync(self._fd)
            for path in old:
                path.unlink()

    def close(self) -> None:
        with self._turn:
            for fd in (self._fd, self._head_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._head_fd = self._lock_fd = -1


def last_link(path: Path) -> ChainLink | None:
    """The link of the last whole line of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        for line in reversed(file.read().splitlines(keepends=True)):
            found = parsed(line)
            if found is not None:
                return ChainLink(found[0]["n"], found[1])
    return None


def allocate(fd: int, offset: int, length: int) -> None:
    """Allocates blocks without a change of the length of the file. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    call = library.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    if call(fd, _KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
