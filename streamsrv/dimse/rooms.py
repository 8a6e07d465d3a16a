"""The parts of a worker that operations need, and the outcomes that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from streamsrv.audit.entries import AuditEntry, Event, EventOutcome
from streamsrv.audit.recorder import AuditRecorder
from streamsrv.dimse.channel import Channel
from streamsrv.dimse.dialing import Dialer
from streamsrv.dimse.protocol.commands import DimseStatus
from streamsrv.dimse.protocol.pdus import data_pdus
from streamsrv.dimse.services.commitment_log import CommitmentLog
from streamsrv.errors import (
    ContentTooLarge,
    IndexFailed,
    InsufficientStorage,
    Overloaded,
    RequestError,
    StreamsrvError,
    system_error,
)
from streamsrv.ingest import Ingest
from streamsrv.query.matching import MatchingOptions
from streamsrv.retrieve import Retrieve
from streamsrv.search import Searches
from streamsrv.web.access.principal import Principal
from streamsrv.web.stow import Batches, Buffers

log = logging.getLogger("streamsrv.dimse")

READ_AT_ONCE = 4096  # bytes of a dataset, which take 0.2 ms
Found = TypeVar("Found")


class DimsePeer(NamedTuple):
    """A peer of an association; `address` is that of its connection."""

    principal: Principal
    address: str


class OperationOutcome(NamedTuple):
    """The final response. `comment` is a sentence for the peer, `numbers` are those of sub-operations."""

    status: DimseStatus
    comment: str = ""
    numbers: tuple[int, ...] = ()
    dataset: bytes = b""


class BackgroundTasks:
    """Work that outlives its association. Must be made inside the running loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()


@dataclass(frozen=True, slots=True)
class DimseRooms:
    """`ingest` makes the transaction of a principal for a SOP Class and Instance UID. `searches` and
    `retrieve` are those of a principal. `dialer` makes associations. `commitments` are those
    that are not reported yet. `on_failure` is called if this process
    cannot use the index any more."""

    ingest: Callable[[Principal, tuple[str, str]], Ingest]
    searches: Callable[[Principal], Searches]
    retrieve: Callable[[Principal], Retrieve]
    dialer: Dialer
    threads: Executor
    background: BackgroundTasks
    batches: Batches
    buffers: Buffers
    audit: AuditRecorder | None
    commitments: CommitmentLog
    on_failure: Callable[[IndexFailed], None]

    def failure(self, peer: DimsePeer, error: Exception, doing: str) -> OperationOutcome:
        """The outcome of an operation that failed. `doing` is its name."""
        known = system_error(error, doing) if isinstance(error, OSError) else error
        if isinstance(known, IndexFailed):
            self.on_failure(known)
        if not isinstance(known, StreamsrvError):
            log.error("unexpected", exc_info=error)
            return OperationOutcome(DimseStatus.OUT_OF_RESOURCES, "the server failed; its log knows more")
        own = not isinstance(known, RequestError | ContentTooLarge | Overloaded | InsufficientStorage)
        if own:
            log.error("a %s of %s failed: %s", doing, peer.principal.name, known.detail)
        elif not isinstance(known, ContentTooLarge):
            log.warning("a %s of %s failed: %s", doing, peer.principal.name, known.detail)
        return OperationOutcome(DimseStatus.OUT_OF_RESOURCES, known.detail)

    def note(
        self,
        peer: DimsePeer,
        event: Event,
        outcome: EventOutcome = EventOutcome.SUCCESS,
        **facts: str,
    ) -> None:
        """An `entry` of the audit trail that nothing waits for."""
        if self.audit is not None:
            self.audit.note(self.entry(peer, event, outcome, **facts))

    def entry(
        self,
        peer: DimsePeer,
        event: Event,
        outcome: EventOutcome = EventOutcome.SUCCESS,
        *,
        study: str = "",
        query: str = "",
        detail: str = "",
    ) -> AuditEntry:
        clock = self.audit.clock() if self.audit else 0.0
        return AuditEntry(
            clock, event, outcome, peer.principal.name, peer.address, study, query=query, detail=detail
        )


class UsedContext(NamedTuple):
    """The presentation context of a message."""

    number: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """The association as its operations see it. `longest` is the length of PDVs in a PDU that the peer takes.
    `send` waits until the peer takes the bytes. `channel` has sub-operations. `title` is the AE title of this
    server."""

    rooms: DimseRooms
    peer: DimsePeer
    longest: int
    send: Callable[[bytes], Awaitable[None]]
    channel: Channel
    options: MatchingOptions
    title: str

    async def read(self, reader: Callable[[bytes, str], Found], content: bytes, syntax: str) -> Found:
        """The content of a dataset. A thread reads a long one."""
        if len(content) <= READ_AT_ONCE:
            return reader(content, syntax)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.rooms.threads, reader, content, syntax)

    def message(self, context: int, command: bytes, dataset: bytes = b"") -> bytes:
        """The PDUs of a response."""
        sent = b"".join(data_pdus(context, command, self.longest, is_command=True))
        return sent + b"".join(data_pdus(context, dataset, self.longest))
