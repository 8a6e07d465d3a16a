"""Frames and texts that go through a pipe from one process to another.

Strategy: pages are lent where that is safe. splice(2) moves a stored frame into the pipe from the page cache.
vmsplice(2) lends an answer from the memory of the process that made it. So the read by the receiver is the
only copy. The receiver gets bytes and no descriptor that it could seek. Bytes that do not fit into the pipe
follow when the receiver has read.

Rules of this file
- Lent memory stays unchanged until the other side has read it.
- A pool lends no memory: a process could delay its read until the pool uses the same page for other data.
  A stored frame never changes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import termios
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from framecodecs.errors import FrameUnread
from framecodecs.pool.confinement import F_SETPIPE_SZ, LIBC

WITHOUT_WAITING = 2  # SPLICE_F_NONBLOCK
PAGE = 4096
USUAL_ROOM = 16 * PAGE  # bytes that a new pipe holds
MOST_ROOM = 1 << 20  # bytes that a user other than root may request (fs.pipe-max-size)
AT_ONCE = 512  # pieces of one call; UIO_MAXIOV is 1024


class StoredFrame(NamedTuple):
    """A frame in a file that never changes there. `descriptor` is open for reading."""

    descriptor: int
    offset: int
    length: int


Frame = bytes | memoryview | StoredFrame


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def length_of(frame: Frame) -> int:
    return frame.length if isinstance(frame, StoredFrame) else len(frame)


def make_room(pipe: int, size: int) -> None:
    """Enlarges the pipe to `size` bytes, or to the most that this user may have."""
    size += 3 * PAGE  # pieces begin and end within pages
    if size > USUAL_ROOM:
        for room in (size, MOST_ROOM):
            with suppress(OSError):
                fcntl.fcntl(pipe, F_SETPIPE_SZ, room)
                return


def unread_in(pipe: int) -> int:
    """Returns the number of bytes in the pipe."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


class PipeWriter:
    """Writes pieces into a pipe. `may_lend` allows the receiver to share their memory."""

    lends = False

    def __init__(self, pieces: Iterable[Frame], may_lend: bool = False) -> None:
        self._rest = deque[memoryview | StoredFrame](
            [
                piece if isinstance(piece, StoredFrame) else memoryview(piece).cast("B")
                for piece in pieces
                if length_of(piece)
            ]
        )
        self._may_lend = may_lend
        self.sent = 0  # bytes

    def send(self, pipe: int, flags: int = 0) -> bool:
        """Sends as much as the pipe takes, and returns whether that was all. Waits for the receiver unless
        `flags` are WITHOUT_WAITING. Raises OSError of the pipe, and FrameUnread for a cut stored frame."""
        try:
            while self._rest:
                first = self._rest[0]
                count = (
                    self._splice(pipe, first) if isinstance(first, StoredFrame) else self._write(pipe, flags)
                )
                self._advance(count)
        except BlockingIOError:
            return False
        return True

    def _write(self, pipe: int, flags: int) -> int:
        pieces = list[memoryview]()
        for piece in self._rest:
            if isinstance(piece, StoredFrame) or len(pieces) == AT_ONCE:
                break
            pieces.append(piece)
        short = sum(map(len, pieces)) <= PAGE
        if self.sent or not short:
            if self._may_lend and (count := self._lend(pipe, pieces, flags)) is not None:
                return count
            os.set_blocking(pipe, not flags)
        return os.writev(pipe, pieces)  # an empty pipe takes a page at once

    def _lend(self, pipe: int, pieces: Sequence[memoryview], flags: int) -> int | None:
        """Returns None where the system does not lend."""
        vectors = (_Vector * len(pieces))(*[_Vector(_address_of(piece), len(piece)) for piece in pieces])
        count: int = LIBC.vmsplice(pipe, vectors, ctypes.c_size_t(len(pieces)), flags)
        if count >= 0:
            self.lends = True
            return count
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):
            raise OSError(code, os.strerror(code))
        return None

    def _splice(self, pipe: int, frame: StoredFrame) -> int:
        try:
            count = os.splice(
                frame.descriptor, pipe, frame.length, offset_src=frame.offset, flags=WITHOUT_WAITING
            )
        except (BlockingIOError, BrokenPipeError):
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise FrameUnread(f"a stored frame cannot be read: {error.strerror}") from error
            self._read(frame)  # this file system does not splice
            return 0
        if not count:
            raise FrameUnread(f"{frame.length} bytes of a stored frame are not there")
        return count

    def _read(self, frame: StoredFrame) -> None:
        try:
            piece = os.pread(frame.descriptor, min(frame.length, MOST_ROOM), frame.offset)
        except OSError as error:
            raise FrameUnread(f"a stored frame cannot be read: {error.strerror}") from error
        if not piece:
            raise FrameUnread(f"{frame.length} bytes of a stored frame are not there")
        self._advance(len(piece), sent=0)
        self._rest.appendleft(memoryview(piece))

    def _advance(self, count: int, sent: int | None = None) -> None:
        self.sent += count if sent is None else sent
        while count:
            first = self._rest.popleft()
            length = length_of(first)
            if count < length:
                rest = (
                    first._replace(offset=first.offset + count, length=length - count)
                    if isinstance(first, StoredFrame)
                    else first[count:]
                )
                self._rest.appendleft(rest)
                return
            count -= length

    def keep_open(self) -> list[int]:
        """Duplicates the descriptors of stored frames that are not sent yet. The caller closes the
        duplicates. Raises OSError."""
        stored = dict.fromkeys(piece.descriptor for piece in self._rest if isinstance(piece, StoredFrame))
        own = dict[int, int]()
        try:
            for descriptor in stored:
                own[descriptor] = os.dup(descriptor)
        except OSError:
            for descriptor in own.values():
                os.close(descriptor)
            raise
        self._rest = deque(
            piece._replace(descriptor=own[piece.descriptor]) if isinstance(piece, StoredFrame) else piece
            for piece in self._rest
        )
        return list(own.values())


def _address_of(piece: memoryview) -> int:
    address: int = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
    return address


class PipeReader:
    """Reads `size` bytes from a pipe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._whole: bytes | None = b"" if not size else None
        self._buffer: io.BytesIO | None = None
        self._filled = 0

    def receive(self, pipe: int) -> bytes | None:
        """Returns all of them, or None while some are missing. Raises EOFError at the end of the pipe."""
        try:
            while self._whole is None:
                self._read_more(pipe)
        except BlockingIOError:
            return None
        return self._whole

    def _read_more(self, pipe: int) -> None:
        if not self._filled and self._size <= MOST_ROOM:
            first = os.read(pipe, self._size)
            if len(first) == self._size:
                self._whole = first
                return
            self._buffer = io.BytesIO(bytes(self._size))
            count = self._buffer.write(first)
        else:
            self._buffer = self._buffer or io.BytesIO(bytes(self._size))
            with self._buffer.getbuffer() as view:
                count = os.readv(pipe, [view[self._filled :]])
        if not count:
            raise EOFError
        self._filled += count
        if self._filled == self._size:
            self._whole = self._buffer.getvalue()


def receive_whole(pipe: int, size: int) -> bytes:
    """Waits for `size` bytes. Raises EOFError if the pipe ends before."""
    piece = PipeReader(size).receive(pipe)
    if piece is None:
        raise EOFError
    return piece
