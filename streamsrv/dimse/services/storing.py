"""One C-STORE: its dataset on the way into the store (PS3.4 Annex B, PS3.7 9.1.1).

Strategy: a preamble and file meta information are made of command and presentation context, and the fragments
follow. So an instance is one application/dicom body, and takes the way of HTTP: a short one waits in a buffer
and shares segment, sync and commit with others that have arrived; a longer one is streamed. No C-STORE waits
for others to come.

Rules of this file
- SUCCESS is the status of an instance that is on the disk, and whose audit entry is there.
- An error leaves nothing behind. The rest of the dataset is dropped, because the status comes behind it.
- The same instance with the same bytes is a success: peers send an instance again if its response was lost.
"""

from __future__ import annotations

import asyncio

from streamsrv.audit.entries import Event, EventOutcome
from streamsrv.dicom.explicit import part10_head
from streamsrv.dicom.values import UID
from streamsrv.dimse.protocol.commands import Command, DimseStatus
from streamsrv.dimse.rooms import DimsePeer, DimseRooms, OperationOutcome
from streamsrv.errors import InstanceError
from streamsrv.ingest import SHORT_BODY, Ingest
from streamsrv.ingest.response import StoreResult
from streamsrv.web.access.principal import Right
from streamsrv.web.stow import Upload

# Status of an instance that the store refuses, by its failure reason (errors.py).
_STATUSES = {
    43264: DimseStatus.CANNOT_UNDERSTAND,
    43265: DimseStatus.MISMATCH,
    45070: DimseStatus.DUPLICATE,
    272: DimseStatus.OUT_OF_RESOURCES,
    292: DimseStatus.NOT_AUTHORIZED,
}
# The HTTP status of the same outcome, under which it is counted.
HTTP_STATUSES = {
    DimseStatus.SUCCESS: 200,
    DimseStatus.DUPLICATE: 409,
    DimseStatus.NOT_AUTHORIZED: 403,
    DimseStatus.OUT_OF_RESOURCES: 507,
}


class StoreOperation:
    """Call `take` for each fragment of the dataset, then `finish`; else `abort`, which is safe to call
    twice. One task at a time."""

    def __init__(
        self, rooms: DimseRooms, peer: DimsePeer, command: Command, context: tuple[str, str]
    ) -> None:
        """`context` is abstract and transfer syntax."""
        self.command = command
        self.received = 0  # bytes of the dataset
        self._rooms = rooms
        self._peer = peer
        self._buffer: bytearray | None = None
        self._size = 0  # bytes of the buffer that wait
        self._upload: Upload | None = None
        self._refused = self._refusal(context[0])
        if self._refused is None:
            self._put(part10_head(command.sop_class, command.instance, context[1]))

    def _refusal(self, abstract_syntax: str) -> OperationOutcome | None:
        command = self.command
        if not UID.fullmatch(command.instance):
            return OperationOutcome(DimseStatus.INVALID_INSTANCE, "(0000,1000) is no UID")
        if command.sop_class != abstract_syntax:
            return OperationOutcome(
                DimseStatus.CLASS_NOT_SUPPORTED, "(0000,0002) differs from the presentation context"
            )
        if Right.STORE not in self._peer.principal.rights:
            self._refused_right()
            return OperationOutcome(DimseStatus.NOT_AUTHORIZED, "this peer may not store")
        return None

    def _put(self, piece: bytes | memoryview) -> None:
        if self._buffer is None:
            self._buffer = self._rooms.buffers.take()
        self._buffer[self._size : self._size + len(piece)] = piece
        self._size += len(piece)

    async def take(self, piece: memoryview) -> None:
        """Keeps no view of the piece."""
        self.received += len(piece)
        if self._refused is not None:
            return
        if self._buffer is None:
            self._buffer = self._rooms.buffers.take()
        room = SHORT_BODY if self._upload is None else len(self._buffer)
        if self._size + len(piece) > room:
            try:
                await self._write()
            except Exception as error:
                self._refused = self._outcome_of(error)
                await self.abort()
                return
        self._put(piece)

    async def _write(self) -> None:
        """Writes the bytes that wait to a segment."""
        assert self._buffer is not None
        if self._upload is None:
            self._upload = Upload(self._rooms.threads, self._ingest(), None, 0, check=self._check)
            await self._upload.begin()
        size, self._size = self._size, 0
        await self._upload.feed(self._buffer, size)

    def _ingest(self) -> Ingest:
        return self._rooms.ingest(self._peer.principal, (self.command.sop_class, self.command.instance))

    def _check(self) -> None:
        if self._rooms.audit is not None:
            self._rooms.audit.require()

    async def finish(self) -> OperationOutcome:
        """The dataset has ended. Returns when the instance is durable, or nothing of it is left."""
        if self._refused is not None:
            return self._refused
        try:
            result = await self._stored()
            return await self._answer(result)
        except Exception as error:
            return self._outcome_of(error)
        finally:
            await self.abort()

    async def _stored(self) -> StoreResult:
        if self._upload is not None:
            await self._write()
            return await self._upload.finish()
        self._check()
        buffer, self._buffer = self._buffer, None
        assert buffer is not None
        rooms = self._rooms
        upload = Upload(rooms.threads, self._ingest(), None, 0, batches=rooms.batches)
        upload.arrived(buffer, self._size, rooms.buffers.give)
        return await upload.finish()

    async def _answer(self, result: StoreResult) -> OperationOutcome:
        if result.failed:
            failed = result.failed[0]
            status = _STATUSES[failed.failure_reason]
            if status is DimseStatus.NOT_AUTHORIZED:
                self._refused_right()
            return OperationOutcome(status, failed.comment)
        await self._recorded(result.stored[0].study)
        return OperationOutcome(DimseStatus.SUCCESS)

    def _outcome_of(self, error: Exception) -> OperationOutcome:
        if isinstance(error, InstanceError):
            return OperationOutcome(_STATUSES[error.failure_reason], error.detail)
        return self._rooms.failure(self._peer, error, "C-STORE")

    def cancel(self) -> None:
        """A C-STORE goes on: its instance has arrived."""

    async def abort(self) -> None:
        """Leaves nothing behind; does nothing after a store."""
        buffer, self._buffer = self._buffer, None
        upload, self._upload = self._upload, None
        if upload is not None:
            await upload.abort()
        if buffer is not None:
            self._rooms.buffers.give(buffer)

    # The audit trail

    async def _recorded(self, study: str) -> None:
        """Returns when the entry is on the disk. Raises InsufficientStorage or Overloaded: the peer sends the
        instance again, which is a success then."""
        if self._rooms.audit is None:
            return
        entry = self._rooms.entry(self._peer, Event.STORED, study=study, detail="C-STORE")
        future = self._rooms.audit.record([entry])
        if future is not None:
            await asyncio.wrap_future(future)

    def _refused_right(self) -> None:
        self._rooms.note(self._peer, Event.REFUSED, EventOutcome.MINOR_FAILURE, detail="C-STORE")
