"""Every change that the store makes to a disk goes through one FileOps: the seam where tests record, drop,
tear and refuse writes.

Rules of this file
- Nothing is decided here. A method is one system call, or one system call and its fallback; errors are
  OSErrors as they come.
- Writes name their offset. No file position is ever used, so threads and processes cannot move one another's.
- What is created is readable by its owner only (0600, 0700): the bytes are patients'.
- LMDB writes its own files; they do not pass here.
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
# Linux 6.14: what is written leaves the page cache as soon as it is on the disk. Where a kernel or a file
# system does not know it, it says EOPNOTSUPP.
RWF_DONTCACHE = 0x80
# File systems that cannot copy within the kernel say so in one of these ways.
NO_KERNEL_COPY = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))


class FileOps:
    """Writing, syncing, renaming, unlinking, truncating, copying, and asking for free space."""

    def create(self, path: Path) -> int:
        """A new empty file, open for reading and writing; FileExistsError if there is one."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """An existing file, open for reading and writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
        """Write at most MAX_BUFFERS pieces at `offset`; the count that was written may be short. Unless the
        page cache is to `keep` it, it does not, where it can be told so."""
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
        """A second name; FileExistsError if it is taken."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, folder: Path) -> None:
        """The folder and all in it; nothing if it is not there."""
        shutil.rmtree(folder, ignore_errors=True)

    def allocate(self, path: Path, length: int) -> None:
        """A new file of so many bytes that has all its blocks; FileExistsError if there is one. If the disk
        is full nothing is left."""
        fd = self.create(path)
        try:
            os.posix_fallocate(fd, 0, length)
        except OSError:
            self.unlink(path)
            raise
        finally:
            os.close(fd)

    def length(self, path: Path) -> int:
        """Bytes of the file, 0 if there is none."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return 0

    def space(self, folder: Path) -> tuple[int, int]:
        """(bytes free for us, bytes in all) of the file system."""
        figures = os.statvfs(folder)
        return figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize


def write_all(ops: FileOps, fd: int, pieces: Sequence[Buffer], offset: int, *, keep: bool = True) -> int:
    """Write every piece at `offset`, over as many calls as it takes; returns the bytes written."""
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
    """A call that moves nothing would be repeated for ever."""
    if count <= 0:
        raise OSError(errno.EIO, "the system moved no bytes")
    return count
