"""The sources of an answer's bytes, at the level of one chunk: streams, pages in memory, pages on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Generator, Iterator

from streamsrv.errors import StoreCorrupt
from streamsrv.web.connection.tls import TlsSocket
from streamsrv.wire.answers import ByteStream

PAGE = os.sysconf("SC_PAGE_SIZE")
# All sizes are in bytes.
# Distance of the pages that are probed: readahead brings at least so much at once.
PROBE_STEP = 128 << 10
# The same within an answer that has been in memory so far. If a page is missing, so is mostly all the rest.
LONG_STEP = 1 << 20
# A small request waits for one slice: 2 MB take half a millisecond, encrypted 512 kB do.
SLICE = 2 << 20
TLS_SLICE = 512 << 10
# Part of a stream that a thread sends before it returns to the loop.
FORWARDED = 4 << 20
# Chunks of a quick stream that are sent in one system call, each of which wakes the reader.
TOGETHER = 256 << 10
# Readahead after a page was missing.
READ_AHEAD = 8 << 20


class StreamReader:
    """Pulls the chunks of a ByteStream, holds it to its length, and sends them. `forward` runs in a thread,
    never in two at once."""

    def __init__(self, stream: ByteStream, *, chunked: bool) -> None:
        self._chunks = stream.chunks(0, stream.length)
        self._expected = stream.length
        self._got = 0
        self._together = TOGETHER if stream.quick else 1
        self._chunked = chunked
        self._asked = False  # the client whether it is there, since the last chunk
        self.ended = stream.length == 0

    def forward(self, sock: socket.socket) -> tuple[int, bytes]:
        """Sends chunks until the socket is full, a chunk is not ready yet, or FORWARDED bytes are sent.
        Returns the bytes sent, and the rest of the last chunk. The
        loop is not woken for each chunk, and a chunk is sent while it is in the processor's cache."""
        sent = 0
        while not self.ended and sent < FORWARDED:
            parts, length = self._some()
            if not length:
                sent += 0 if self.ended else self._ask(sock)
                break
            self._asked = False
            if self._chunked:
                parts = [b"%x\r\n" % length, *parts, b"\r\n"]
            try:
                count = sock.sendmsg(parts)
            except BlockingIOError:
                count = 0
            sent += count
            if count < sum(map(len, parts)):
                return sent, b"".join(parts)[count:]
        return sent, b""

    def _ask(self, sock: socket.socket) -> int:
        """Finds out whether a client that has shut its side still reads: sends the first digit of the next
        chunk size. Returns the bytes sent. A size may begin with zeros (RFC 9112 7.1). A client that has
        closed the connection answers by a reset, which raises OSError next time."""
        if not self._chunked or isinstance(sock, TlsSocket):
            return 0  # after a byte that was not taken, TLS needs the same one again
        if self._asked:
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise ConnectionResetError(error, os.strerror(error))
            return 0
        with contextlib.suppress(BlockingIOError):
            if not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                self._asked = True
                return sock.send(b"0")
        return 0

    def _some(self) -> tuple[list[bytes], int]:
        """The next chunks, and their length; empty where one is not ready yet, or at the end."""
        found: list[bytes] = []
        length = 0
        while length < self._together and not self.ended:
            chunk = self._next()
            if not chunk:
                break
            found.append(chunk)
            length += len(chunk)
        return found, length

    def _next(self) -> bytes:
        """The next chunk, empty at the end."""
        chunk = next(self._chunks, None)
        self._got += len(chunk or b"")
        if self._expected is None:
            self.ended = chunk is None
        else:
            # A stream of known length is not asked for its end.
            self.ended = self._got == self._expected
            if self._got > self._expected or (chunk is None and not self.ended):
                raise StoreCorrupt(f"a stream of {self._expected} bytes yielded {self._got}")
        return chunk or b""

    def close(self) -> None:
        close_iterator(self._chunks)


def close_iterator(iterator: Iterator[object]) -> None:
    """Generators hold files and locks until they are closed; plain iterators have nothing to close."""
    if isinstance(iterator, Generator):
        iterator.close()


def warm_bytes(source: int, offset: int, length: int, so_far: bool = False) -> int:
    """The number of the next bytes that are in memory. It is judged by the first page and the last of each
    PROBE_STEP: the disk brings longer parts at a time, and next to one page others may be on their way. If
    all was in memory `so_far`, the last page of each LONG_STEP is enough, if these are."""
    if so_far and _warm_until(source, offset, length, LONG_STEP) == length:
        return length
    return _warm_until(source, offset, length, PROBE_STEP)


def _warm_until(source: int, offset: int, length: int, step: int) -> int:
    end, warm = offset + length, 0
    probed = (*range(offset + step - 1, end - 1, step), end - 1)
    for at in probed if step > PROBE_STEP else (offset, *probed):
        try:
            os.preadv(source, [bytearray(1)], at, os.RWF_NOWAIT)
        except BlockingIOError:
            return warm
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return 0  # a file system that cannot tell: always from a thread
        warm = at + 1 - offset if at > offset else 0
    return length


def to_page(source: int, offset: int, length: int) -> bytes:
    """The bytes before the first whole page of a span, if they are in memory, else none. They are to go out
    with the head: where a head is followed by half a page, the kernel takes a quarter longer for the pages
    behind it."""
    lead = min(-offset % PAGE, length)
    view = memoryview(bytearray(lead))
    return bytes(view) if lead and read_warm(source, view, offset) else b""


def read_warm(source: int, target: memoryview, offset: int) -> bool:
    """Fills `target` from memory, in one call. False if a part is not in memory. Raises StoreCorrupt if the
    segment is shorter."""
    try:
        count = os.preadv(source, [target], offset, os.RWF_NOWAIT)
        if count < len(target) and os.fstat(source).st_size < offset + len(target):
            raise StoreCorrupt(f"a segment ends at byte {offset + count}, before the end of a record")
        return count == len(target)
    except BlockingIOError:
        return not target
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False


def send_file_now(
    sock: socket.socket, source: int, offset: int, length: int, head: bytes, tail: bytes
) -> int:
    """Sends `head`, the span of a file and `tail`. Returns the bytes that the socket took at once, 0 if the
    span is not in memory. An error shows again when the rest is sent."""
    sent, lead = 0, to_page(source, offset, length)
    offset, length = offset + len(lead), length - len(lead)
    if warm_bytes(source, offset, length) == length:
        head += lead
        with contextlib.suppress(OSError):
            sent = sock.send(head, socket.MSG_MORE)
            if sent == len(head):
                sent += send_file(sock, source, offset, length)
                if sent == len(head) + length:
                    sent += sock.send(tail)
    return sent


def send_file(sock: socket.socket, source: int, offset: int, length: int) -> int:
    """sendfile(2), also for TLS."""
    if isinstance(sock, TlsSocket):
        return sock.send_from(source, offset, length)
    return os.sendfile(sock.fileno(), source, offset, length)


def send_cold(sock: socket.socket, source: int, offset: int, length: int) -> int | None:
    """In a thread: waits for the disk, yet not for the socket. None if the socket is full."""
    os.posix_fadvise(source, offset, READ_AHEAD, os.POSIX_FADV_WILLNEED)
    try:
        return send_file(sock, source, offset, length)
    except BlockingIOError:
        return None


def turn_bytes(sock: socket.socket) -> int:
    """The bytes that one answer sends in a turn of the loop, in half a millisecond."""
    return TLS_SLICE if isinstance(sock, TlsSocket) else SLICE
