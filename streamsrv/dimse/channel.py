"""Requests of this server to a peer, over an association of either side: C-STORE sub-operations.

Strategy: the dataset is read in a thread, portion by portion, and each portion is sent before the next one is
read. So the socket of the peer sets the pace, and no instance is in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor

from streamsrv.dimse.protocol.commands import Command, event_report_request, store_request
from streamsrv.dimse.protocol.pdus import COMMAND, LAST, data_head, data_pdus
from streamsrv.retrieve.whole_datasets import WholeDataset

# Sends the pieces of one message, and nothing of another one between them.
SendMessage = Callable[[AsyncIterator[bytes]], Awaitable[None]]
_HEADS = 12  # bytes before a fragment of which 6 are in the length of the PDU


class PeerLost(ConnectionError):
    """The association of a channel has ended, or its peer is too slow."""


class OutgoingDataset:
    """A dataset as P-DATA-TF PDUs. All calls block, and one thread at a time makes them. `longest` is the
    length of PDVs in a PDU that the peer takes."""

    def __init__(self, dataset: WholeDataset, longest: int) -> None:
        self.row, self.syntax = dataset.row, dataset.syntax
        self._dataset = dataset
        self._chunks = filter(None, dataset.chunks)
        self._room = longest - _HEADS // 2 & ~1
        self._waiting = next(self._chunks, None)

    def portion(self, context: int, command: bytes = b"") -> bytes:
        """The PDUs of the next chunk, behind those of `command`; empty at the end."""
        content, pieces = self._waiting, list[bytes | memoryview]()
        pieces += self._pdus(context, command, COMMAND, is_last=True)
        if content is not None:
            self._waiting = next(self._chunks, None)
            pieces += self._pdus(context, content, 0, is_last=self._waiting is None)
        return b"".join(pieces)

    def _pdus(self, context: int, content: bytes, control: int, *, is_last: bool) -> list[bytes | memoryview]:
        view, room, pieces = memoryview(content), self._room, list[bytes | memoryview]()
        for at in range(0, len(view), room):
            piece = view[at : at + room]
            last = LAST if is_last and at + room >= len(view) else 0
            pieces += data_head(context, control | last, len(piece)), piece
        return pieces

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

    @property
    def is_waiting(self) -> bool:
        """Whether a response has not come."""
        return bool(self._waiting)

    def syntaxes(self, sop_class: str) -> Sequence[str]:
        return tuple(self.contexts.get(sop_class, ()))

    async def store(self, dataset: OutgoingDataset, originator: tuple[str, int] | None) -> int:
        """Sends a C-STORE, and returns the status of its response. Raises PeerLost."""
        row = dataset.row
        context = self.contexts[row.sop_class_uid][dataset.syntax]
        self._number = self._number % 0xFFFF + 1
        command = store_request(self._number, row.sop_class_uid, row.key.instance, originator)
        return (await self._invoke(self._number, self._portions(dataset, context, command))).status

    async def report(self, context: int, sop_class: str, instance: str, event: int, dataset: bytes) -> int:
        """Sends an N-EVENT-REPORT, and returns the status of its response. Raises PeerLost."""
        self._number = self._number % 0xFFFF + 1
        command = event_report_request(self._number, sop_class, instance, event)

        async def pieces() -> AsyncIterator[bytes]:
            yield b"".join(data_pdus(context, command, self.longest, is_command=True))
            yield b"".join(data_pdus(context, dataset, self.longest))

        return (await self._invoke(self._number, pieces())).status

    async def _portions(self, dataset: OutgoingDataset, context: int, command: bytes) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while portion := await loop.run_in_executor(self._threads, dataset.portion, context, command):
            yield portion
            command = b""

    async def _invoke(self, number: int, pieces: AsyncIterator[bytes]) -> Command:
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
