"""Requests of this server to a peer, over an association of either side: C-STORE sub-operations.

Strategy: the dataset is read in a thread, portion by portion, and each portion is sent before the next one is
read. So the socket of the peer sets the pace, and no instance is in memory.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import TypeAlias

from streamsrv.dimse.protocol.commands import Command, event_report_request, store_request
from streamsrv.dimse.protocol.pdus import LAST, data_head, data_pdus
from streamsrv.errors import StoreCorrupt
from streamsrv.retrieve.whole_datasets import WholeDataset
from streamsrv.store import FileRange

Piece: TypeAlias = bytes | memoryview
# Sends one message, and nothing of another one in between: its first piece, and the others as they are made.
SendMessage = Callable[[Piece, AsyncIterator[Piece]], Awaitable[None]]
_HEADS = 12  # bytes before a fragment: six of the PDU, six of the PDV
PORTION = 1 << 20  # bytes of a stored dataset that are read at a time
MOST_FRAGMENTS = 512  # of one portion; the kernel takes 1,024
FRONT = 1 << 10  # bytes of a buffer for the command set
BUFFER = FRONT + PORTION + MOST_FRAGMENTS * _HEADS
LONGEST_SENT = 1 << 18  # bytes of a P-DATA-TF to a peer that takes any


class PeerLost(ConnectionError):
    """The association of a channel has ended, or its peer is too slow."""


class OutgoingDataset:
    """A C-STORE-RQ: its command set, and a dataset as P-DATA-TF PDUs of one presentation context. `longest`
    is the length of PDVs in a PDU that the peer takes. A stored dataset is read into `buffer`, between the
    heads of its PDUs. The first portion is read here. With `at_once` that does not block, but raises
    BlockingIOError. One thread at a time calls it."""

    def __init__(
        self,
        dataset: WholeDataset,
        context: int,
        longest: int,
        buffer: bytearray,
        request: tuple[int, bytes],
        *,
        at_once: bool,
    ) -> None:
        """`request` are message id and command set."""
        self.row, self.syntax, self.buffer = dataset.row, dataset.syntax, buffer
        self.number, command = request
        self._dataset = dataset
        self._context = context
        self._room = longest - _HEADS // 2 & ~1
        self._head = data_head(context, 0, self._room)  # of each fragment but the last one
        self._chunks = filter(None, dataset.chunks)
        self._ahead: bytes | None = None
        self._odd = b""
        self._at = 0  # bytes of a stored dataset that are read
        if dataset.stored is None:
            self._ahead = next(self._chunks, None)
        portion = self._next(os.RWF_NOWAIT if at_once else 0)
        self.first = self._behind(b"".join(data_pdus(context, command, longest, is_command=True)), portion)

    @property
    def has_more(self) -> bool:
        """Whether there are portions behind those that were taken."""
        stored = self._dataset.stored
        return self._ahead is not None if stored is None else self._at < stored.length

    def _behind(self, command: bytes, portion: Piece) -> Piece:
        """The first portion behind the PDUs of the command set."""
        if isinstance(portion, bytes) or len(command) > FRONT:
            return command + bytes(portion)
        self.buffer[FRONT - len(command) : FRONT] = command
        return memoryview(self.buffer)[FRONT - len(command) : FRONT + len(portion)]

    def portion(self) -> Piece:
        """The next one, behind `first`. The last one is not valid any more."""
        return self._next(0)

    def _next(self, flags: int) -> Piece:
        if self._dataset.stored is not None:
            return self._read(self._dataset.stored, flags)
        if self._ahead is None:
            return b""
        content, self._ahead = self._odd + self._ahead, next(self._chunks, None)
        is_last = self._ahead is None
        self._odd = b"" if is_last or len(content) % 2 == 0 else content[-1:]  # a fragment has an even length
        content = content[: len(content) - len(self._odd)]
        return b"".join(
            data_head(self._context, LAST if is_last and at + self._room >= len(content) else 0, len(piece))
            + piece
            for at in range(0, len(content), self._room)
            for piece in (content[at : at + self._room],)
        )

    def _read(self, stored: FileRange, flags: int) -> memoryview:
        """The next bytes of a stored dataset, in one call of the kernel."""
        view, place, fragments = memoryview(self.buffer), FRONT, list[memoryview]()
        at, room = self._at, self._room
        end = min(at + PORTION, stored.length)
        while at < end and len(fragments) < MOST_FRAGMENTS:
            size, head = room, self._head
            if end - at <= room:
                size = end - at
                head = data_head(self._context, LAST if end == stored.length else 0, size)
            view[place : place + _HEADS] = head
            fragments.append(view[place + _HEADS : place + _HEADS + size])
            place += _HEADS + size
            at += size
        try:
            got = os.preadv(stored.fd, fragments, stored.offset + self._at, flags) if fragments else 0
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and flags:  # a file system without RWF_NOWAIT
                raise BlockingIOError from error
            raise
        if got < at - self._at:
            if flags:
                raise BlockingIOError
            raise StoreCorrupt("a segment ends before the end of a record")
        self._at = at
        return view[FRONT:place]

    def close(self) -> None:
        self._dataset.close()


class Channel:
    """One association. `contexts` has the presentation contexts in which this server is the SCU, by SOP class
    and transfer syntax. The peer has `patience` seconds for a response."""

    def __init__(
        self,
        send: SendMessage,
        threads: Executor,
        contexts: Mapping[str, Mapping[str, int]],
        *,
        longest: int,
        patience: float,
    ) -> None:
        self.contexts = contexts
        self.longest = longest
        self._send = send
        self._threads = threads
        self._patience = patience
        self._waiting: dict[int, asyncio.Future[Command]] = {}
        self._number = 0
        self._buffers: list[bytearray] = []  # two are in use: one is sent, and one is filled

    @property
    def is_waiting(self) -> bool:
        """Whether a response has not come."""
        return bool(self._waiting)

    def syntaxes(self, sop_class: str) -> Sequence[str]:
        return tuple(self.contexts.get(sop_class, ()))

    def opened(
        self, dataset: WholeDataset, originator: tuple[str, int] | None = None, *, at_once: bool = False
    ) -> OutgoingDataset:
        """`originator` are AE title and message id of a C-MOVE. Closes the dataset after an error. Blocks, or
        with `at_once` raises BlockingIOError."""
        row, number = dataset.row, self._next_number()
        context = self.contexts[row.sop_class_uid][dataset.syntax]
        buffer = self._buffers.pop() if self._buffers else bytearray(BUFFER)
        request = number, store_request(number, row.sop_class_uid, row.key.instance, originator)
        try:
            return OutgoingDataset(dataset, context, self.longest, buffer, request, at_once=at_once)
        except BaseException:
            dataset.close()
            self._buffers.append(buffer)
            raise

    def close(self, dataset: OutgoingDataset) -> None:
        dataset.close()
        self._buffers.append(dataset.buffer)

    async def store(self, dataset: OutgoingDataset) -> int:
        """Sends a C-STORE, and returns the status of its response. Raises PeerLost."""
        await self.send(dataset)
        return await self.status(dataset.number)

    async def send(self, dataset: OutgoingDataset) -> None:
        """Sends a C-STORE; then `status` waits for its response. Raises PeerLost."""
        await self._invoke(dataset.number, dataset.first, self._portions(dataset))

    async def report(self, context: int, sop_class: str, instance: str, event: int, dataset: bytes) -> int:
        """Sends an N-EVENT-REPORT, and returns the status of its response. Raises PeerLost."""
        number = self._next_number()
        command = event_report_request(number, sop_class, instance, event)
        message = (
            *data_pdus(context, command, self.longest, is_command=True),
            *data_pdus(context, dataset, self.longest),
        )
        await self._invoke(number, b"".join(message), _nothing())
        return await self.status(number)

    def _next_number(self) -> int:
        self._number = self._number % 0xFFFF + 1
        return self._number

    async def _portions(self, dataset: OutgoingDataset) -> AsyncIterator[Piece]:
        loop = asyncio.get_running_loop()
        while dataset.has_more:
            yield await loop.run_in_executor(self._threads, dataset.portion)

    async def _invoke(self, number: int, first: Piece, others: AsyncIterator[Piece]) -> None:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(first, others)
        except OSError as error:
            del self._waiting[number]
            raise PeerLost(error.strerror or str(error)) from None

    async def status(self, number: int) -> int:
        """Waits for the response to a message. Raises PeerLost."""
        try:
            async with asyncio.timeout(self._patience):
                return (await self._waiting[number]).status
        except TimeoutError:
            raise PeerLost(f"no response in {self._patience:g} s") from None
        finally:
            self._waiting.pop(number, None)

    def take(self, response: Command) -> bool:
        """A response has come. False if nothing waits for it."""
        future = self._waiting.get(response.responded_to)
        if future is None:
            return False
        if not future.done():
            future.set_result(response)
        return True

    def fail(self) -> None:
        """The association has ended."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PeerLost("the association has ended"))
                future.exception()  # perhaps nothing waits for it any more


async def _nothing() -> AsyncIterator[Piece]:
    """No further pieces."""
    return
    yield b""
