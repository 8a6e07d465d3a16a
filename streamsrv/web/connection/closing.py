"""The end of a connection before its time.

A close of a socket with unread bytes sends a reset, and a reset may overtake the last answer. The client
would never learn why it was refused. So our side is shut first, and the bytes that the client still sends are
dropped for a while (RFC 9112 9.6).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Callable

from tornado.iostream import StreamClosedError

from streamsrv.errors import OUTSIDE, StreamsrvError
from streamsrv.web.access_log import CLIENT_GONE
from streamsrv.web.connection.stream import Stream
from streamsrv.web.connection.tls import TlsSocket
from streamsrv.web.sending.response import CONTINUE, Outgoing
from streamsrv.wire.answers import Literal

# How long, and how much, a refused client may go on sending before it is cut off.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 << 20
# How long a reset may take to come, and the state of a connection without one (linux/tcp_states.h).
RESET_SECONDS = 0.5
TCP_CLOSE_WAIT = 8
GONE = (StreamClosedError, ConnectionError)

log = logging.getLogger("streamsrv.web")


def final_status(error: BaseException | None, status: int, request_id: str, sent: int) -> int:
    """The status in the access log of an answer whose transfer ended with `error`, after `sent` bytes of
    payload. An answer that the server cut short is logged."""
    if error is None:
        return status
    if isinstance(error, (*GONE, TimeoutError)):
        return CLIENT_GONE
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        log.error("[%s] the answer was cut short after %d bytes: %s", request_id, sent, error.strerror)
    elif isinstance(error, StreamsrvError):  # as for a broken frame behind good ones
        log.error("[%s] the answer was cut short after %d bytes: %s", request_id, sent, error.detail)
    else:
        log.error("[%s] the answer was cut short after %d bytes", request_id, sent, exc_info=error)
    return status


async def send_last(stream: Stream, outgoing: Outgoing) -> int:
    """Sends a refusal, the last bytes of this connection, and shuts our side. Returns the payload's
    length."""
    payload = b"".join(piece.payload for piece in outgoing.answer.plan if isinstance(piece, Literal))
    text = outgoing.head + payload if outgoing.body else outgoing.head
    try:
        if stream.half_closed:
            stream.socket.send(text)  # nothing else is on its way, so the kernel takes it
        else:
            await stream.write(text)
        if not stream.closed():
            stream.socket.shutdown(socket.SHUT_WR)
    except (*GONE, OSError):
        pass
    return len(payload) if outgoing.body else 0


def probe_client(stream: Stream, version: str, gone: Callable[[], None]) -> None:
    """The client has closed its connection, or its side only: call `gone` if it receives no more. A closed
    socket answers a second 100 Continue with a reset; other clients ignore it (RFC 9110 15.2)."""

    def check() -> None:
        if not stream.half_closed:  # the answer has ended, and the socket with it
            return
        with contextlib.suppress(OSError):
            if stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_CLOSE_WAIT:
                gone()

    if not stream.half_closed:
        gone()
    elif version == "HTTP/1.1":
        try:
            stream.socket.send(CONTINUE, socket.MSG_DONTWAIT)
        except OSError:
            gone()
        else:
            asyncio.get_running_loop().call_later(RESET_SECONDS, check)


def reset(stream: Stream) -> None:
    """Makes the close a reset. To a client that waits for the end of the connection, a plain close would look
    like the end of the answer. Bytes that the client has not read yet are lost."""
    if not stream.closed() or stream.half_closed:
        if isinstance(stream.socket, TlsSocket):
            stream.socket.cut()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def discard(stream: Stream) -> None:
    """Drops bytes until the client has closed or LINGER_BYTES have arrived."""
    buffer, dropped = bytearray(64 << 10), 0
    try:
        while dropped < LINGER_BYTES:
            dropped += await stream.read_into(buffer, partial=True)
    except StreamClosedError:
        pass
