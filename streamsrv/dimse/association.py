"""The life of one association: its socket, its messages, its end.

Strategy: one task reads. A message is handled while its fragments arrive. Its end (sync, commit, response)
runs in a task of its own. So a peer with a window of operations (PS3.7 D.3.3.3) sends the next instance
meanwhile, and their stores share a commit.

Rules of this file
- At most WINDOW operations are open, or one without negotiation: then no further one begins.
- While an operation sends its responses, the task reads on, because a C-CANCEL may come.
- Each end is told: A-RELEASE-RP, A-ASSOCIATE-RJ or A-ABORT. Then nothing more is answered (Sta13).
- A peer that left does not undo an instance that had arrived whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from streamsrv.dicom.explicit import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from streamsrv.dimse.channel import LONGEST_SENT, Channel, Piece
from streamsrv.dimse.connections import AT_ONCE, PlainConnection
from streamsrv.dimse.operations import KINDS, Operation, operation_of
from streamsrv.dimse.protocol import pdus
from streamsrv.dimse.protocol.commands import (
    LONGEST_COMMAND,
    RESPONSE,
    Command,
    CommandField,
    DimseStatus,
    command_of,
    response,
)
from streamsrv.dimse.protocol.models import FIND
from streamsrv.dimse.protocol.negotiation import ACCEPTED, accept, asks_fuzzy, extended, roles
from streamsrv.dimse.protocol.pdus import (
    AbortReason,
    AssociateRequest,
    Fragment,
    UpperLayerError,
)
from streamsrv.dimse.protocol.upper_layer import Ending, LayerState, UpperLayer
from streamsrv.dimse.rooms import Conversation, DimsePeer, DimseRooms, OperationOutcome, UsedContext
from streamsrv.dimse.services.committing import CommitmentOperation
from streamsrv.dimse.services.storing import HTTP_STATUSES
from streamsrv.metrics import RequestKind
from streamsrv.query.matching import MatchingOptions

log = logging.getLogger("streamsrv.dimse")

WINDOW = 8  # operations; each may hold a buffer of 4 MiB

# Seconds in which the peer may read the last PDU.
LINGER = 1.0
SHORTEST_PDU = 256  # bytes of P-DATA-TF that a peer has to take: a response has up to 250


class AssociationLimits(NamedTuple):
    """Times are in seconds, lengths in bytes."""

    longest_pdu: int
    request_timeout: float
    idle_timeout: float
    stall_timeout: float
    min_rate: float


class Rejection(NamedTuple):
    """The fields of an A-ASSOCIATE-RJ (PS3.8 Table 9-21)."""

    result: int
    source: int
    reason: int
    sentence: str


class Association:
    """`admit` names the principal of a peer, or the rejection. `count` gets kind, HTTP status, bytes and
    seconds of each operation, and of the association when it ends. `title` is the AE title of the server."""

    def __init__(
        self,
        connection: PlainConnection,
        limits: AssociationLimits,
        rooms: DimseRooms,
        admit: Callable[[AssociateRequest, str], DimsePeer | Rejection],
        count: Callable[[RequestKind, int, int, float], None],
        title: str,
    ) -> None:
        self.address = connection.address
        self._title = title
        self._connection = connection
        self._limits = limits
        self._rooms = rooms
        self._admit = admit
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._layer = UpperLayer(limits.longest_pdu)
        self._contexts: dict[int, tuple[str, str]] = {}
        self._peer: DimsePeer | None = None
        self._window = 1
        self._talk: Conversation | None = None
        self._sending = asyncio.Lock()
        self._began = self._last = self._mark_at = time.monotonic()
        self._moved = self._mark = 0
        self._is_reading = False
        self._command = bytearray()
        self._command_context = 0
        self._operation: Operation | None = None
        self._operation_began = 0.0
        self._open: dict[asyncio.Task[None], Operation] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._ending: UpperLayerError | None = None
        self._is_draining = False
        self._status = 400
        self._stored = self._failed = self._bytes = 0

    @property
    def is_established(self) -> bool:
        return self._layer.state is LayerState.ESTABLISHED

    async def run(self) -> None:
        """Serves the connection, and closes it."""
        try:
            await self._connection.open()
            await self._read()
        except UpperLayerError as error:
            await self._abort(error)
        except OSError as error:
            log.info("association of %s broke: %s", self._name, error.strerror)
        except Exception:
            log.exception("association of %s failed", self._name)
            await self._abort(UpperLayerError("the server failed", AbortReason.NOT_SPECIFIED))
        finally:
            if self._operation is not None:
                await self._operation.abort()
            self._cancel_all()
            if self._open:
                await asyncio.wait(self._open)
            await self._close()

    def _cancel_all(self) -> None:
        for operation in self._open.values():
            operation.cancel()
        if self._talk is not None:
            self._talk.channel.fail()

    @property
    def _name(self) -> str:
        return f"{self._peer.principal.name}@{self.address}" if self._peer else self.address

    async def _read(self) -> None:
        while self._layer.state is not LayerState.CLOSING:
            space = self._layer.space()
            self._is_reading = True
            try:
                count = await self._connection.receive_into(space)
            finally:
                self._is_reading = False
            if self._ending is not None:
                raise self._ending
            if not count:
                if self.is_established:
                    log.info("association of %s: the peer closed the connection", self._name)
                return
            self._moved += count
            self._last = time.monotonic()
            for event in self._layer.received(count):
                if isinstance(event, Fragment):
                    await self._fragment(event)
                elif isinstance(event, AssociateRequest):
                    await self._associate(event)
                else:
                    await self._ended_by_peer(event)
            await asyncio.sleep(0)  # bytes that are there already are received without a turn of the loop

    # Association

    async def _associate(self, request: AssociateRequest) -> None:
        admitted = self._refusal(request) or self._admit(request, self.address)
        if isinstance(admitted, Rejection):
            self._status = 503 if admitted.result == 2 else 403
            log.warning(
                "association of %r at %s rejected: %s", request.calling, self.address, admitted.sentence
            )
            await self._end(pdus.associate_reject(*admitted[:3]))
            return
        self._peer = admitted
        answers = accept(request.contexts)
        for proposed, answer in zip(request.contexts, answers, strict=True):
            if answer.result == ACCEPTED:
                self._contexts[answer.number] = proposed.abstract_syntax, answer.transfer_syntax
        self._window = min(request.window or WINDOW, WINDOW)
        self._talk = self._conversation(request, admitted)
        self._layer.accepted()
        log.info("association of %s: %d of %d contexts", self._name, len(self._contexts), len(answers))
        await self._send(
            pdus.associate_accept(
                request,
                answers,
                longest=self._limits.longest_pdu,
                window=self._window,
                implementation=(IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME),
                roles=roles(request.roles),
                extended=extended(request.extended),
            )
        )

    def _conversation(self, request: AssociateRequest, peer: DimsePeer) -> Conversation:
        longest = min(request.longest or LONGEST_SENT, LONGEST_SENT)
        received = {uid for uid, _, scp in roles(request.roles) if scp}
        contexts: dict[str, dict[str, int]] = {uid: {} for uid in received}
        for number, (abstract, syntax) in self._contexts.items():
            if abstract in received:
                contexts[abstract].setdefault(syntax, number)
        patience = self._limits.idle_timeout
        channel = Channel(
            self._send_message, self._rooms.threads, contexts, longest=longest, patience=patience
        )
        is_fuzzy = any(asks_fuzzy(asked) for uid, asked in request.extended if uid in FIND)
        return Conversation(
            *(self._rooms, peer, longest, self._send, channel),
            options=MatchingOptions(fuzzy=is_fuzzy),
            title=self._title,
        )

    def _refusal(self, request: AssociateRequest) -> Rejection | None:
        if not request.version & pdus.PROTOCOL_VERSION:
            return Rejection(1, 2, 2, "its protocol version is not 1")
        if request.application_context != pdus.APPLICATION_CONTEXT:
            return Rejection(1, 1, 2, "its application context is unknown")
        if 0 < request.longest < SHORTEST_PDU:
            return Rejection(1, 1, 1, f"it takes {request.longest} bytes in a PDU only")
        return None

    async def _ended_by_peer(self, ending: Ending) -> None:
        if ending is Ending.ABORTED:
            log.info("association of %s: aborted by the peer", self._name)
            self._layer.ended()
            return
        if self._operation is not None:
            raise UpperLayerError("a release within a message", AbortReason.UNEXPECTED_PDU)
        self._cancel_all()
        while self._open:
            await asyncio.wait(self._open)
        self._status = 200
        await self._end(pdus.release_response())

    # Messages

    async def _fragment(self, fragment: Fragment) -> None:
        if fragment.context not in self._contexts:
            raise UpperLayerError(f"a PDV of presentation context {fragment.context}, which was not accepted")
        if fragment.is_command:
            await self._command_fragment(fragment)
            return
        operation = self._operation
        if operation is None or self._command or fragment.context != self._command_context:
            raise UpperLayerError("a dataset without its command", AbortReason.UNEXPECTED_PARAMETER)
        await operation.take(fragment.view)
        if fragment.is_last:
            await self._finish(operation)

    async def _command_fragment(self, fragment: Fragment) -> None:
        if self._operation is not None or (self._command and fragment.context != self._command_context):
            raise UpperLayerError("a command within a message", AbortReason.UNEXPECTED_PARAMETER)
        self._command_context = fragment.context
        self._command += fragment.view
        if len(self._command) > LONGEST_COMMAND:
            raise UpperLayerError(f"a command set of more than {LONGEST_COMMAND} bytes")
        if fragment.is_last:
            command = command_of(bytes(self._command))
            self._command.clear()
            await self._begin(command)

    async def _begin(self, command: Command) -> None:
        if command.field == CommandField.C_CANCEL:
            for operation in self._open.values():
                if operation.command.message_id == command.responded_to:
                    operation.cancel()
            return
        if command.field & RESPONSE:
            if self._talk is not None and self._talk.channel.take(command) and not command.has_dataset:
                return
            raise UpperLayerError("a response without its request", AbortReason.UNEXPECTED_PARAMETER)
        if not self._room.is_set() and any(map(_needs_responses, self._open.values())):
            # Nothing is read while a request waits for room, so the responses would never come.
            raise UpperLayerError(
                "a request in the middle of a C-GET, beyond the window of operations",
                AbortReason.UNEXPECTED_PARAMETER,
            )
        await self._room.wait()
        self._operation_began = time.monotonic()
        context = UsedContext(self._command_context, *self._contexts[self._command_context])
        assert self._talk is not None
        self._operation = operation_of(self._talk, command, context)
        if not command.has_dataset:
            await self._finish(self._operation)

    async def _finish(self, operation: Operation) -> None:
        """The message has arrived."""
        self._operation = None
        task = self._loop.create_task(self._answer(operation, self._command_context, self._operation_began))
        self._open[task] = operation
        task.add_done_callback(self._answered)
        if len(self._open) >= self._window:
            self._room.clear()

    def _answered(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        self._room.set()
        self._last = time.monotonic()
        if self._is_draining:
            self._end_if_idle()

    async def _answer(self, operation: Operation, context: int, began: float) -> None:
        command = operation.command
        try:
            outcome = await operation.finish()
            self._counted(operation, outcome, began)
            assert self._talk is not None
            said = response(
                *(command, outcome.status, outcome.comment),
                has_dataset=bool(outcome.dataset),
                numbers=outcome.numbers,
            )
            await self._send(self._talk.message(context, said, outcome.dataset))
        except OSError as error:
            log.info("association of %s: a response was not taken: %s", self._name, error.strerror or error)
        finally:
            if isinstance(operation, CommitmentOperation):
                operation.report()

    def _counted(self, operation: Operation, outcome: OperationOutcome, began: float) -> None:
        seconds = time.monotonic() - began
        status, field = HTTP_STATUSES.get(outcome.status, 400), operation.command.field
        if kind := KINDS.get(field):
            received = operation.received if kind is RequestKind.C_STORE else 0
            self._count(kind, status, received, seconds)
        if outcome.status not in (DimseStatus.SUCCESS, DimseStatus.CANCEL) and kind is not None:
            log.warning(
                "%s of %s answered with %04X: %s (instance %s)",
                *(kind.upper(), self._name, outcome.status, outcome.comment),
                operation.command.instance[:64],
            )
        if field == CommandField.C_STORE:
            self._bytes += operation.received
            self._stored += outcome.status is DimseStatus.SUCCESS
            self._failed += outcome.status is not DimseStatus.SUCCESS

    # Sending

    async def _send(self, content: bytes) -> None:
        """Waits until the peer takes the bytes. Does nothing behind the last PDU. Raises OSError for a peer
        that is too slow, and ends its association."""
        async with self._sending:
            await self._put(content)

    async def _send_message(self, first: Piece, others: AsyncIterator[Piece]) -> None:
        """Sends a message as it is made. One that breaks off ends the association. Raises OSError if it has
        ended."""
        async with self._sending:
            self._require_open()
            try:
                await self._put(first)
                async for piece in others:
                    self._require_open()
                    await self._put(piece)
            except BaseException as error:
                self.end(f"a message broke off: {error}")
                raise

    def _require_open(self) -> None:
        if self._layer.state is LayerState.CLOSING:
            raise ConnectionAbortedError("the association has ended")

    async def _put(self, content: Piece) -> None:
        if self._layer.state is LayerState.CLOSING:
            return
        view = memoryview(content)
        view = view[self._connection.send_at_once(view) :]
        try:
            await self._connection.send_paced(view, self._limits.stall_timeout)
        except TimeoutError:
            self.end(f"it took less than {AT_ONCE} bytes in {self._limits.stall_timeout:g} s")
            raise

    async def _end(self, last: bytes) -> None:
        """Sends the last PDU. Nothing that waits to be sent comes behind it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER), self._sending:
                try:
                    await self._put(last)
                finally:
                    self._layer.ended()
        self._layer.ended()

    async def _abort(self, error: UpperLayerError) -> None:
        log.warning("association of %s aborted: %s", self._name, error.detail)
        await self._end(pdus.abort(error.source, error.reason))

    async def _close(self) -> None:
        """Reads on for a moment: a connection that is closed with unread bytes is reset, and the peer may
        lose the last PDU."""
        self._layer.ended()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._connection.stop_writing()
                await self._connection.drop()
        self._connection.close()
        seconds = time.monotonic() - self._began
        if self._peer is not None or self._status != 400 or self._moved:
            self._count(RequestKind.ASSOCIATION, self._status, 0, seconds)
        if self._peer is not None:
            what = self._name, self._stored, self._failed, self._bytes, seconds
            log.info("association of %s ended: %d stored, %d failed, %d bytes, %.3f s", *what)

    # Ending from outside

    def sweep(self, now: float) -> None:
        """Called about once a second: ends a connection that is too slow."""
        limits = self._limits
        waits = self._is_reading and not self._open
        if self._layer.state is LayerState.AWAITING:
            if now - self._began > limits.request_timeout:
                self.end(f"no A-ASSOCIATE-RQ in {limits.request_timeout:g} s")
        elif not waits:
            self._last = self._mark_at = now
            self._mark = self._moved
        elif self._operation is None and not self._command and not self._layer.has_part:
            self._mark_at, self._mark = now, self._moved
            if now - self._last > limits.idle_timeout:
                self.end(f"no message in {limits.idle_timeout:g} s")
        elif self._moved - self._mark >= limits.min_rate * limits.stall_timeout:
            self._mark_at, self._mark = now, self._moved
        elif now - self._mark_at >= limits.stall_timeout:
            self.end(f"slower than {limits.min_rate:g} bytes a second")

    def drain(self) -> None:
        """Ends the association after the operations that have begun."""
        self._is_draining = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._operation is None and not self._command and not self._open:
            self.end("the server ends")

    def end(self, sentence: str) -> None:
        """Aborts the association; an instance that has arrived whole is stored."""
        if self._ending is None:
            self._ending = UpperLayerError(sentence, AbortReason.NOT_SPECIFIED)
            self._connection.stop_reading()
            self._room.set()


def _needs_responses(operation: Operation) -> bool:
    return operation.command.field == CommandField.C_GET
