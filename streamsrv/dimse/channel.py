"""Requests of this server to a peer, over an association of either side: C-STORE sub-operations.

Strategy: the dataset is read in a thread, portion by portion, and each portion is sent before the next one is
read. So the socket of the peer sets the pace, and no instance is in memory.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor

from streamsrv.dimse.protocol.commands import Command, event_report_request, store_request
from streamsrv.dimse.protocol.pdus import LAST, data_head, data_pdus
from streamsrv.errors import StoreCorrupt
from streamsrv.retrieve.whole_datasets import WholeDataset
from streamsrv.store import FileRange

# Sends the pieces of one message, and nothing of another one between them.
SendMessage = Callable[[AsyncIterator[bytes | memoryview]], Awaitable[None]]
_HEADS = 12  # bytes before a fragment: six of the PDU, six of the PDV
PORTION = 1 << 20  # bytes of a stored dataset that are read at a time
MOST_FRAGMENTS = 512  # of one portion; the kernel takes 1,024
FRONT = 1 << 10  # bytes of a buffer for the command set
BUFFER = FRONT + PORTION + MOST_FRAGMENTS * _HEADS


class PeerLost(ConnectionError):
    """The association of a channel has ended, or its peer is too slow."""


class OutgoingDataset:
    """A dataset as P-DATA-TF PDUs of one presentation context. `longest` is the length of PDVs in a PDU that
    the peer takes. A stored dataset is read into `buffer`, between the heads of its PDUs. The first portion
    is read here. With `at_once` that does not block, but raises BlockingIOError. One thread at a time calls
    it."""

    def __init__(
        self, dataset: WholeDataset, context: int, longest: int, buffer: bytearray, *, at_once: bool
    ) -> None:
        self.row, self.syntax, self.buffer = dataset.row, dataset.syntax, buffer
        self._dataset = dataset
        self._context = context
        self._room = longest - _HEADS // 2 & ~1
        self._chunks = filter(None, dataset.chunks)
        self._ahead: bytes | None = None
        self._odd = b""
        self._at = 0  # bytes of a stored dataset that are read
        if dataset.stored is None:
            self._ahead = next(self._chunks, None)
        self._first = self._next(os.RWF_NOWAIT if at_once else 0)

    @property
    def has_more(self) -> bool:
        """Whether there are portions behind those that were taken."""
        stored = self._dataset.stored
        return self._ahead is not None if stored is None else self._at < stored.length

    def first(self, command: bytes) -> bytes | memoryview:
        """The first portion, behind the PDUs of a command set. Does not block."""
        head = b"".join(data_pdus(self._context, command, self._room + _HEADS // 2, is_command=True))
        portion, self._first = self._first, b""
        if isinstance(portion, bytes) or len(head) > FRONT:
            return head + bytes(portion)
        self.buffer[FRONT - len(head) : FRONT] = head
        return memoryview(self.buffer)[FRONT - len(head) : FRONT + len(portion)]

    def portion(self) -> bytes | memoryview:
        """The next one. The last one is not valid any more."""
        return self._next(0)

    def _next(self, flags: int) -> bytes | memoryview:
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
        end = min(self._at + PORTION, stored.length)
        at = self._at
        while at < end and len(fragments) < MOST_FRAGMENTS:
            size = min(self._room, end - at)
            head = data_head(self._context, LAST if at + size == stored.length else 0, size)
            view[place : place + _HEADS] = head
            fragments.append(view[place + _HEADS : place + _HEADS + size])
            place += _HEADS + size
            at += size
        got = os.preadv(stored.fd, fragments, stored.offset + self._at, flags) if fragments else 0
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

    def opened(self, dataset: WholeDataset, *, at_once: bool = False) -> OutgoingDataset:
        """Closes the dataset after an error. Blocks, or with `at_once` raises BlockingIOError."""
        context = self.contexts[dataset.row.sop_class_uid][dataset.syntax]
        buffer = self._buffers.pop() if self._buffers else bytearray(BUFFER)
        try:
            return OutgoingDataset(dataset, context, self.longest, buffer, at_once=at_once)
        except BaseException:
            dataset.close()
            self._buffers.append(buffer)
            raise

    def close(self, dataset: OutgoingDataset) -> None:
        dataset.close()
        self._buffers.append(dataset.buffer)

    async def store(self, dataset: OutgoingDataset, originator: tuple[str, int] | None) -> int:
        """Sends a C-STORE, and returns the status of its response. Raises PeerLost."""
        row = dataset.row
        self._number = self._number % 0xFFFF + 1
        command = store_request(self._number, row.sop_class_uid, row.key.instance, originator)
        return (await self._invoke(self._number, self._portions(dataset, command))).status

    async def report(self, context: int, sop_class: str, instance: str, event: int, dataset: bytes) -> int:
        """Sends an N-EVENT-REPORT, and returns the status of its response. Raises PeerLost."""
        self._number = self._number % 0xFFFF + 1
        command = event_report_request(self._number, sop_class, instance, event)

        async def pieces() -> AsyncIterator[bytes | memoryview]:
            yield b"".join(data_pdus(context, command, self.longest, is_command=True))
            yield b"".join(data_pdus(context, dataset, self.longest))

        return (await self._invoke(self._number, pieces())).status

    async def _portions(self, dataset: OutgoingDataset, command: bytes) -> AsyncIterator[bytes | memoryview]:
        loop = asyncio.get_running_loop()
        yield dataset.first(command)
        while dataset.has_more:
            yield await loop.run_in_executor(self._threads, dataset.portion)

    async def _invoke(self, number: int, pieces: AsyncIterator[bytes | memoryview]) -> Command:
        future: asyncio.Future[Command] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._send(pieces)
            async with asyncio.timeout(self._patience):
                return await future
        except TimeoutError:
            raise PeerLost(f"no response in {self._patience:g} s") from None
        except OSError as error:
            raise PeerLost(error.strerror or str(error)) from None
        finally:
            del self._waiting[number]

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
