"""All changes of the store to the disk go through one FileOps. Tests replace it to record, drop, tear and
refuse writes.

Rules of this file
- A method is one system call, or one system call and its fallback; it raises the OSError of the call.
- A write names its offset. The file position is not used, so threads and processes cannot disturb each other.
- New files and folders are for their owner only (0600, 0700): they hold data of patients.
- LMDB writes its own files, without FileOps.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

# Linux takes at most 1,024 buffers a call (IOV_MAX).
MAX_BUFFERS = 1024
COPY_WINDOW = 1 << 20
# Linux 6.14: written bytes leave the page cache when they are on the disk; EOPNOTSUPP where unknown.
RWF_DONTCACHE = 0x80
# Errors of file systems that cannot copy within the kernel.
NO_KERNEL_COPY = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))


class FileOps:
    """Writing, syncing, renaming, unlinking, truncating, copying, and asking for free space."""

    def create(self, path: Path) -> int:
        """A new empty file, open for reading and writing. Raises FileExistsError."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """An existing file, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
        """Write at most MAX_BUFFERS pieces at `offset`; returns the bytes written, maybe fewer. Without
        `keep` the bytes leave the page cache, if the system can do that."""
        if not keep:
            try:
                return os.pwritev(fd, pieces[:MAX_BUFFERS], offset, RWF_DONTCACHE)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        return os.pwritev(fd, pieces[:MAX_BUFFERS], offset)

    def sync(self, fd: int) -> None:
        """Contents and length of the file are on the disk when this returns."""
        os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Names in the folder are on the disk when this returns."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def copy(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        """Copy within the kernel, sharing extents where the file system can; the count may be short."""
        try:
            return os.copy_file_range(source, target, length, source_offset, target_offset)
        except OSError as error:
            if error.errno not in NO_KERNEL_COPY:
                raise
        window = os.pread(source, min(length, COPY_WINDOW), source_offset)
        return os.pwrite(target, window, target_offset)

    def make_folder(self, folder: Path) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Add a second name. Raises FileExistsError."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, folder: Path) -> None:
        """Remove the folder with its contents, if it exists."""
        shutil.rmtree(folder, ignore_errors=True)

    def allocate(self, path: Path, length: int) -> None:
        """Make a file of `length` bytes with all its blocks. On a full disk no file is left. Raises
        FileExistsError."""
        fd = self.create(path)
        try:
            os.posix_fallocate(fd, 0, length)
        except OSError:
            self.unlink(path)
            raise
        finally:
            os.close(fd)

    def length(self, path: Path) -> int:
        """Bytes of the file, 0 if it is missing."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return 0

    def space(self, folder: Path) -> tuple[int, int]:
        """(free bytes, all bytes) of the file system."""
        figures = os.statvfs(folder)
        return figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize


def write_all(ops: FileOps, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
    """Write all pieces at `offset`; returns the bytes written."""
    length = sum(map(len, pieces))
    done = ops.write(fd, pieces, offset, keep=keep) if length else 0
    while done < length:
        done += _step(ops.write(fd, _rest(pieces, done), offset + done, keep=keep))
    return length


def _rest(pieces: Sequence[Buffer], done: int) -> list[Buffer]:
    """The pieces without their first `done` bytes."""
    rest: list[Buffer] = []
    for piece in pieces:
        if done >= len(piece):
            done -= len(piece)
        else:
            rest.append(memoryview(piece)[done:])
            done = 0
    return rest


def copy_all(
    ops: FileOps, source: int, source_offset: int, target: int, target_offset: int, length: int
) -> None:
    done = 0
    while done < length:
        done += _step(ops.copy(source, source_offset + done, target, target_offset + done, length - done))


def _step(count: int) -> int:
    """Raises OSError if a call made no progress: else it would be repeated forever."""
    if count <= 0:
        raise OSError(errno.EIO, "the system moved no bytes")
    return count
