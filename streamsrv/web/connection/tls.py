"""TLS over one connection, behind the calls of a socket that HTTP uses here.

Strategy: OpenSSL works on memory, and this class moves the ciphertext. So one call encrypts PIECE bytes and
one call sends them: OpenSSL alone makes a system call for each record of 16 kB, two for each that it reads.
Sending has the contract of a socket that does not block: a call returns how many bytes were taken.

Rules of this file
- The ciphertext that the kernel has not taken yet stays here, at most that of one piece. Its plaintext counts
  as not sent (`owed`), in proportion. So after a call that took less, the next call begins with the
  same bytes, and they are not encrypted again. All writers of web/sending do so.
- One thread may send while the loop reads: each call to OpenSSL holds the lock for one piece.
- The end of the ciphertext counts as the end of the client's bytes, also without a closing alert: the framing
  of HTTP tells whether a message is whole (RFC 9112 9.8).
- `close` and `shutdown` send our closing alert, unless `cut` was called or bytes before it are unsent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
from collections.abc import Iterable
from typing import cast

# Bytes of plaintext that are encrypted at a time: four records. OpenSSL keeps a buffer of this size.
PIECE = 64 << 10
# Bytes of ciphertext that are received at a time.
RECEIVED = 64 << 10
# Answers of the protocol itself (alerts) that a client may leave unread.
MOST_UNSENT = 2 * PIECE
NOTHING = memoryview(b"")


class TlsSession:
    """The state of one connection, shared by its socket and the duplicates. `scratch` is a buffer of RECEIVED
    bytes for all sessions of a loop."""

    __slots__ = (
        "ahead",
        "cut",
        "ended",
        "engine",
        "incoming",
        "lock",
        "outgoing",
        "owed",
        "scratch",
        "unsent",
    )

    def __init__(self, context: ssl.SSLContext, scratch: memoryview) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.engine = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.lock = threading.Lock()
        self.scratch = scratch
        self.unsent = NOTHING  # ciphertext.
        self.owed = 0  # bytes of plaintext: encrypted, and not reported as sent.
        self.ahead = b""  # plaintext that was looked at
        self.ended = False  # the client sends no more
        self.cut = False  # no closing alert is sent


class TlsSocket(socket.socket):
    """Takes over the descriptor of a connected socket that does not block."""

    __slots__ = ("_is_first", "session")

    def __init__(self, descriptor: int, session: TlsSession, *, is_first: bool = True) -> None:
        super().__init__(fileno=descriptor)
        self.session = session
        self._is_first = is_first

    def dup(self) -> TlsSocket:
        """Another descriptor for the same session; its close sends nothing."""
        return TlsSocket(os.dup(self.fileno()), self.session, is_first=False)

    # The handshake

    def shake_hands(self) -> bool:
        """One step, in any thread. Returns whether the handshake has ended. Raises SSLError if it fails,
        another OSError if the client leaves."""
        session = self.session
        with session.lock:
            with contextlib.suppress(BlockingIOError):
                session.incoming.write(self._received())
            done = False
            try:
                session.engine.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                self._send_outgoing()
            return done

    def _received(self) -> bytes:
        received = super().recv(RECEIVED)
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "the client left during the handshake")
        return received

    def send_plain(self, data: bytes) -> None:
        """To a client that does not speak TLS; it may have sent more bytes."""
        with contextlib.suppress(OSError):
            super().send(data)
            super().shutdown(socket.SHUT_WR)
            while super().recv(RECEIVED):
                pass

    # Receiving

    @property
    def has_ahead(self) -> bool:
        """Whether there are bytes that the kernel does not report."""
        session = self.session
        return bool(session.ahead or session.engine.pending() or session.incoming.pending)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """With MSG_PEEK at most one byte, which stays."""
        session = self.session
        with session.lock:
            if flags & socket.MSG_PEEK:
                if not session.ahead:
                    session.ahead = bytes(session.scratch[: self._read(session.scratch[:1])])
                return session.ahead
            count = self._read(session.scratch[:size])
            return bytes(session.scratch[:count])

    def recv_into(self, buffer: object, nbytes: int = 0, flags: int = 0) -> int:
        with self.session.lock:
            view = memoryview(cast(bytearray, buffer))
            return self._read(view[:nbytes] if nbytes else view)

    def _read(self, view: memoryview) -> int:
        """All that has arrived, up to the length of `view`; 0 at the end. Raises BlockingIOError if nothing
        has, ConnectionResetError for bytes that are not TLS."""
        session, got, drained = self.session, 0, False
        if session.ahead:
            got = min(len(session.ahead), len(view))
            view[:got], session.ahead = session.ahead[:got], session.ahead[got:]
        starved = not (session.incoming.pending or session.engine.pending())
        while got < len(view) and not session.ended:
            if starved:
                if got and drained:
                    break
                try:
                    received = super().recv(RECEIVED)
                except BlockingIOError:
                    if got:
                        break
                    self._send_outgoing()
                    raise
                drained, session.ended = len(received) < RECEIVED, not received
                session.incoming.write(received)
            try:
                count = cast(int, session.engine.read(len(view) - got, cast(bytearray, view[got:])))
            except ssl.SSLWantReadError:
                starved = True
                continue
            except ssl.SSLError as error:
                session.cut = True
                self._send_outgoing()
                raise ConnectionResetError(errno.ECONNRESET, f"not TLS: {error.reason}") from None
            session.ended = count == 0
            got += count
            starved = not (session.incoming.pending or session.engine.pending())
        if session.outgoing.pending:
            self._send_outgoing()
        return got

    # Sending

    def send(self, data: object, flags: int = 0) -> int:
        with self.session.lock:
            return self._send(memoryview(cast(bytes, data)), flags)

    def sendmsg(self, buffers: Iterable[object], *rest: object) -> int:
        return self.send(b"".join(cast("Iterable[bytes]", buffers)))

    def send_from(self, source: int, offset: int, length: int) -> int:
        """As sendfile(2): sends `length` bytes of the file `source` from `offset` on. Returns the bytes that
        were taken, 0 at the end of the file."""
        session = self.session
        with session.lock:
            sent = self._settle(length) if session.unsent or session.owed else 0
            if session.unsent or session.owed:
                return _progress(sent)
        while sent < length:
            piece = os.pread(source, min(length - sent, PIECE), offset + sent)
            try:
                taken = self.send(piece) if piece else 0
            except BlockingIOError:
                if not sent:
                    raise
                return sent
            sent += taken
            if not piece or taken < len(piece):
                break
        return sent

    def _send(self, view: memoryview, flags: int) -> int:
        session = self.session
        done = self._settle(len(view), flags) if session.unsent or session.owed else 0
        while done < len(view) and not session.unsent and not session.owed:
            piece = view[done : done + PIECE]
            session.owed = session.engine.write(cast(bytes, piece))
            session.unsent = memoryview(session.outgoing.read())
            try:
                done += self._settle(len(piece), flags)
            except BlockingIOError:
                break
        return _progress(done) if len(view) else 0

    def _settle(self, most: int, flags: int = 0) -> int:
        """Sends ciphertext that is left. Returns the bytes of plaintext, at most `most`, that count as sent
        by that."""
        session, free = self.session, self.session.owed
        if session.unsent:
            length = len(session.unsent)
            moved = super().send(session.unsent, flags)
            session.unsent = session.unsent[moved:] if moved < length else NOTHING
            free = free * moved // length
        counted = min(free, most)
        session.owed -= counted
        return counted

    def _send_outgoing(self) -> None:
        """Messages of the protocol itself. An error shows at the next call. Raises ConnectionAbortedError
        if the client leaves too many of them unread."""
        session = self.session
        if session.outgoing.pending:
            session.unsent = memoryview(bytes(session.unsent) + session.outgoing.read())
        if len(session.unsent) > MOST_UNSENT:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client does not read")
        if session.unsent:
            with contextlib.suppress(OSError):
                moved = super().send(session.unsent)
                session.unsent = session.unsent[moved:]

    # The end

    def cut(self) -> None:
        """From now on no closing alert is sent: the client can see that an answer is not whole."""
        self.session.cut = True

    def _say_goodbye(self) -> None:
        """The closing alert of our side (RFC 8446 6.1)."""
        session = self.session
        with session.lock:
            if session.cut or session.unsent:
                return
            session.cut = True
            with contextlib.suppress(OSError, ValueError):
                try:
                    session.engine.unwrap()
                except ssl.SSLError:  # that of the client is not awaited
                    pass
                super().send(session.outgoing.read())

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._say_goodbye()
        super().shutdown(how)

    def close(self) -> None:
        if self._is_first and self.fileno() >= 0:
            self._say_goodbye()
        super().close()


def _progress(count: int) -> int:
    """Raises BlockingIOError for 0."""
    if not count:
        raise BlockingIOError(errno.EAGAIN, "the socket is full")
    return count
