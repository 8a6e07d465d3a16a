"""The bytes of one TCP connection, plain or in TLS (PS3.15 B.12), for the tasks of an event loop.

Rules of this file
- One task receives at a time, and one sends. TLS may send while it receives: `_flush` keeps the order.
- After `stop_reading` a task that receives gets the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

ENCRYPTED = 1 << 17  # bytes that are received at a time
AT_ONCE = 1 << 18  # bytes that a peer has to take in time


class PlainConnection:
    """`address` is that of the peer."""

    def __init__(self, connection: socket.socket, address: str = "") -> None:
        self.address = address
        self._loop = asyncio.get_running_loop()
        self._socket = connection

    async def open(self) -> None:
        """Call it first. Raises OSError."""

    async def receive_into(self, space: memoryview) -> int:
        """The number of bytes; 0 at the end. Raises OSError."""
        count = await self._loop.sock_recv_into(self._socket, space)
        self._acknowledge()
        return count

    def _acknowledge(self) -> None:
        """Many senders keep the last segment back until all others are acknowledged (RFC 896). The kernel
        would acknowledge after 40 ms: a study took 1.6 times as long. It is not sticky."""
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send_at_once(self, content: memoryview) -> int:
        """The number of bytes that the socket takes without a wait. Raises OSError."""
        try:
            return self._socket.send(content)
        except BlockingIOError:
            return 0

    async def send(self, content: bytes | memoryview) -> None:
        """Waits until the socket has taken the bytes. Raises OSError."""
        await self._loop.sock_sendall(self._socket, content)

    async def send_paced(self, content: memoryview, patience: float) -> None:
        """As `send`. Raises TimeoutError if the peer takes less than AT_ONCE bytes in `patience` seconds."""
        for at in range(0, len(content), AT_ONCE):
            async with asyncio.timeout(patience):
                await self.send(content[at : at + AT_ONCE])

    def stop_reading(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    async def stop_writing(self) -> None:
        """Raises OSError."""
        self._socket.shutdown(socket.SHUT_WR)

    async def drop(self) -> None:
        """Receives, and forgets, until the peer closes the connection. Raises OSError."""
        dropped = bytearray(1 << 16)
        while await self._loop.sock_recv_into(self._socket, dropped):
            await asyncio.sleep(0)

    def close(self) -> None:
        self._socket.close()


class TlsConnection(PlainConnection):
    """`name` is that of the server, if this is the client."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, address: str = "", name: str | None = None
    ) -> None:
        super().__init__(connection, address)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=name is None, server_hostname=name
        )
        self._encrypted = memoryview(bytearray(ENCRYPTED))
        self._flushing = asyncio.Lock()

    async def open(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive():
                    raise ConnectionAbortedError("it ended within its TLS handshake") from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert
                raise
            else:
                await self._flush()
                return

    async def receive_into(self, space: memoryview) -> int:
        while True:
            try:
                return self._tls.read(len(space), space)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._receive():
                    return 0
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    async def _receive(self) -> bool:
        """False at the end."""
        count = await self._loop.sock_recv_into(self._socket, self._encrypted)
        self._acknowledge()
        if count:
            self._incoming.write(self._encrypted[:count])
        return bool(count)

    def send_at_once(self, content: memoryview) -> int:
        return 0

    async def send(self, content: bytes | memoryview) -> None:
        view = memoryview(content)
        while view:
            view = view[self._tls.write(view) :]
        await self._flush()

    async def _flush(self) -> None:
        async with self._flushing:
            if self._outgoing.pending:
                await self._loop.sock_sendall(self._socket, self._outgoing.read())

    async def stop_writing(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # close_notify
        await self._flush()
        await super().stop_writing()
