"""Frames and texts that go through a pipe from one process to another.

Strategy: pages are lent where that is safe. A stored frame enters the pipe by splice(2) from the page cache,
an answer by vmsplice(2) from the memory of the process that made it, so the receiver's read is the only copy.
The receiver gets bytes and no descriptor that it could move to other bytes. The bytes that do not fit into
the pipe follow when the receiver has read something.

Rules of this file
- Memory that is lent stays as it is until the other side has read it.
- A pool lends no memory: a process could wait until the pool uses the same page for something else, and read
  that. A stored frame never changes.
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
from framecodecs.pool.seccomp import F_SETPIPE_SZ, LIBC

WITHOUT_WAITING = 2  # SPLICE_F_NONBLOCK
PAGE = 4096
USUAL_ROOM = 16 * PAGE  # bytes that a new pipe takes
MOST_ROOM = 1 << 20  # bytes that a user other than root may ask for (fs.pipe-max-size)
AT_ONCE = 512  # pieces of one call; UIO_MAXIOV is 1024


class Stored(NamedTuple):
    """A frame in a file that others keep as it is, of which `descriptor` is open for reading."""

    descriptor: int
    offset: int
    length: int


Frame = bytes | memoryview | Stored


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def length_of(frame: Frame) -> int:
    return frame.length if isinstance(frame, Stored) else len(frame)


def make_room(pipe: int, size: int) -> None:
    """Lets the pipe take so many bytes at once, or as many as this user may have in a pipe."""
    size += 3 * PAGE  # pieces begin and end within pages
    if size > USUAL_ROOM:
        for room in (size, MOST_ROOM):
            with suppress(OSError):
                fcntl.fcntl(pipe, F_SETPIPE_SZ, room)
                return


def unread_in(pipe: int) -> int:
    """Bytes in the pipe."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


class PipeWriter:
    """Pieces on their way into a pipe. `may_lend` says that the receiver may share their memory."""

    lends = False

    def __init__(self, pieces: Iterable[Frame], may_lend: bool = False) -> None:
        kept = (piece if isinstance(piece, Stored) else memoryview(piece).cast("B") for piece in pieces)
        self._rest = deque(piece for piece in kept if length_of(piece))
        self._may_lend = may_lend
        self.sent = 0  # bytes

    def send(self, pipe: int, flags: int = 0) -> bool:
        """As much as the pipe takes; whether that was all. Waits for the receiver, unless the flags say
        WITHOUT_WAITING. Raises OSError of the pipe; FrameUnread if a stored frame is not there as a whole."""
        try:
            while self._rest:
                first = self._rest[0]
                count = self._splice(pipe, first) if isinstance(first, Stored) else self._write(pipe, flags)
                self._forget(count)
        except BlockingIOError:
            return False
        return True

    def _write(self, pipe: int, flags: int) -> int:
        pieces = list[memoryview]()
        for piece in self._rest:
            if isinstance(piece, Stored) or len(pieces) == AT_ONCE:
                break
            pieces.append(piece)
        short = sum(map(len, pieces)) <= PAGE
        if self.sent or not short:
            if self._may_lend and (count := self._lend(pipe, pieces, flags)) is not None:
                return count
            os.set_blocking(pipe, not flags)
        return os.writev(pipe, pieces)  # an empty pipe takes a page at once

    def _lend(self, pipe: int, pieces: Sequence[memoryview], flags: int) -> int | None:
        """None where the system does not lend."""
        vectors = (_Vector * len(pieces))(*[_Vector(_address_of(piece), len(piece)) for piece in pieces])
        count: int = LIBC.vmsplice(pipe, vectors, ctypes.c_size_t(len(pieces)), flags)
        if count >= 0:
            self.lends = True
            return count
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):
            raise OSError(code, os.strerror(code))
        return None

    def _splice(self, pipe: int, frame: Stored) -> int:
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

    def _read(self, frame: Stored) -> None:
        try:
            piece = os.pread(frame.descriptor, min(frame.length, MOST_ROOM), frame.offset)
        except OSError as error:
            raise FrameUnread(f"a stored frame cannot be read: {error.strerror}") from error
        if not piece:
            raise FrameUnread(f"{frame.length} bytes of a stored frame are not there")
        self._forget(len(piece), sent=0)
        self._rest.appendleft(memoryview(piece))

    def _forget(self, count: int, sent: int | None = None) -> None:
        self.sent += count if sent is None else sent
        while count:
            first = self._rest.popleft()
            length = length_of(first)
            if count < length:
                rest = (
                    first._replace(offset=first.offset + count, length=length - count)
                    if isinstance(first, Stored)
                    else first[count:]
                )
                self._rest.appendleft(rest)
                return
            count -= length

    @property
    def stored(self) -> list[int]:
        """Descriptors of the files that are still to be read."""
        return list(dict.fromkeys(piece.descriptor for piece in self._rest if isinstance(piece, Stored)))

    def keep_open(self) -> list[int]:
        """Goes on with descriptors of its own, which the caller closes. Raises OSError."""
        own = dict[int, int]()
        try:
            for descriptor in self.stored:
                own[descriptor] = os.dup(descriptor)
        except OSError:
            for descriptor in own.values():
                os.close(descriptor)
            raise
        self._rest = deque(
            piece._replace(descriptor=own[piece.descriptor]) if isinstance(piece, Stored) else piece
            for piece in self._rest
        )
        return list(own.values())


def _address_of(piece: memoryview) -> int:
    address: int = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
    return address


class Incoming:
    """So many bytes on their way out of a pipe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._whole: bytes | None = b"" if not size else None
        self._buffer: io.BytesIO | None = None
        self._filled = 0

    def receive(self, pipe: int) -> bytes | None:
        """All of them, or None as long as some are missing. Raises EOFError at the end of the pipe."""
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
    """Waits for so many bytes. Raises EOFError if fewer come."""
    piece = Incoming(size).receive(pipe)
    if piece is None:
        raise EOFError
    return piece
