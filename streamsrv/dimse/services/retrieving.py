"""One C-GET (PS3.4 C.4.3), and the parts that C-MOVE shares: each matching instance becomes a C-STORE
sub-operation.

Strategy: the unique keys become a search for instances. They are counted first, and found a second time while
they are sent, so that a retrieve of 100,000 instances holds one page of keys. While one instance is on its
way, the first portion of the next one is read.

Rules of this file
- Only unique keys select instances, each with a value and without wildcards: an identifier without them would
  send the whole archive.
- An instance that cannot be read, or that the peer does not take, is a failed sub-operation, and the others
  go on. If the association ends, so does the operation.
- A cancelled operation ends after the sub-operation that has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from streamsrv.audit.entries import Event
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dicom.values import UID
from streamsrv.dimse.channel import Channel, OutgoingDataset
from streamsrv.dimse.protocol.commands import Command, DimseStatus, response
from streamsrv.dimse.protocol.identifiers import (
    Identifier,
    element_of,
)
from streamsrv.dimse.protocol.models import InformationModel
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.dimse.services.query_operation import QueryOperation
from streamsrv.dimse.services.uid_keys import search_of
from streamsrv.errors import BadRequest, NotDicom, StreamsrvError, system_error
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import Query
from streamsrv.store import InstanceKey
from streamsrv.web.access.principal import Right

log = logging.getLogger("streamsrv.dimse")

PAGE = 100  # keys that a thread takes at a time
PENDING_PAUSE = 0.1  # seconds between two pending responses, at least
UNIQUE_KEYS = {"PATIENT": "00100020", "STUDY": "0020000D", "SERIES": "0020000E", "IMAGE": "00080018"}
FAILED_LIST = 0x00080058
LONGEST_LIST = 65_000  # bytes of UIDs; a UI has at most 65,534 in Explicit VR
_WARNINGS = 0xB000
Made = TypeVar("Made")


@dataclass(slots=True)
class SubOperations:
    """The numbers of one operation. `failures` are the SOP Instance UIDs of failed ones, as many as
    fit."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    warning: int = 0
    failures: list[str] = field(default_factory=list)
    _listed: int = 0  # bytes of `failures`

    def numbers(self, *, with_remaining: bool) -> tuple[int, int, int, int]:
        done = self.completed + self.failed + self.warning
        remaining = max(self.total - done, 0) if with_remaining else -1
        return remaining, self.completed, self.failed, self.warning

    def add(self, status: int, instance: str) -> None:
        """Counts the status of a response."""
        if status == DimseStatus.SUCCESS:
            self.completed += 1
        elif status & 0xF000 == _WARNINGS:
            self.warning += 1
        else:
            self.failed += 1
            self._listed += len(instance) + 1
            if self._listed <= LONGEST_LIST:
                self.failures.append(instance)

    def fail_rest(self) -> None:
        """The sub-operations that remain cannot be performed."""
        self.failed += self.numbers(with_remaining=True)[0]

    @property
    def status(self) -> DimseStatus:
        if not self.failed and not self.warning:
            return DimseStatus.SUCCESS
        some = self.completed or self.warning
        return DimseStatus.WITH_FAILURES if some else DimseStatus.SUB_OPERATIONS_FAILED


class RetrieveOperation(QueryOperation):
    name = "C-GET"
    right = Right.READ

    def __init__(
        self, talk: Conversation, command: Command, model: InformationModel, context: UsedContext
    ) -> None:
        super().__init__(talk, command, model, context)
        self._counts = SubOperations()
        self._told = 0.0
        self._study = ""  # the last one of which an instance was sent

    async def finish(self) -> OperationOutcome:
        """Performs the sub-operations. Returns the final response. Raises OSError if the association ends."""
        refused = self._refused()
        if refused is not None:
            return refused
        try:
            identifier = await self._identifier()
            query = wanted(identifier, self._model)
        except BadRequest as error:
            return OperationOutcome(DimseStatus.MISMATCH, error.detail)
        except NotDicom as error:
            return OperationOutcome(DimseStatus.CANNOT_UNDERSTAND, error.detail)
        try:
            return await self._performed(query)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            return self._talk.rooms.failure(self._talk.peer, error, self.name)

    async def _performed(self, query: Query) -> OperationOutcome:
        self._counts.total = await self._in_thread(self._count, query)
        await self._send_all(query, self._talk.channel, None)
        return self._outcome()

    def _count(self, query: Query) -> int:
        return sum(1 for _ in self._hits(query))

    def _outcome(self) -> OperationOutcome:
        counts, syntax = self._counts, self._context.transfer_syntax
        is_cancelled = self._cancelled and counts.numbers(with_remaining=True)[0] > 0
        return OperationOutcome(
            DimseStatus.CANCEL if is_cancelled else counts.status,
            ""
            if is_cancelled or not counts.failed
            else f"{counts.failed} instances were not taken or not read",
            counts.numbers(with_remaining=is_cancelled),
            failed_list(counts.failures, syntax) if counts.failures else b"",
        )

    # Sub-operations

    async def _send_all(self, query: Query, channel: Channel, originator: tuple[str, int] | None) -> None:
        """The peer waits from its response to the next instance. So all that can be done before is done
        while it takes one: the next one is opened, and the numbers are told."""
        async with aclosing(self._keys(query)) as keys:
            ahead = await self._next(keys, channel, originator)
            try:
                while ahead is not None and not self._cancelled:
                    (key, dataset), ahead = ahead, None
                    if dataset is None:
                        self._counts.add(DimseStatus.OUT_OF_RESOURCES, key.instance)
                        ahead = await self._next(keys, channel, originator)
                        continue
                    try:
                        self._note_sent(key.study)
                        await channel.send(dataset)
                        await self._tell()
                        ahead = await self._next(keys, channel, originator)
                        self._add(await channel.status(dataset.number), key.instance)
                    finally:
                        channel.close(dataset)
            finally:
                if ahead is not None and ahead[1] is not None:
                    channel.close(ahead[1])

    def _add(self, status: int, instance: str) -> None:
        self._counts.add(status, instance)
        if status:
            name = self._talk.peer.principal.name
            log.warning("%s of %s: a C-STORE of %s got %04X", self.name, name, instance, status)

    async def _next(
        self, keys: AsyncIterator[InstanceKey], channel: Channel, originator: tuple[str, int] | None
    ) -> tuple[InstanceKey, OutgoingDataset | None] | None:
        """An instance with the first portion of its dataset, or with None if it cannot be read. None at the
        end."""
        key = await anext(keys, None)
        return None if key is None else (key, await self._opened(key, channel, originator))

    async def _keys(self, query: Query) -> AsyncGenerator[InstanceKey, None]:
        hits = self._hits(query)
        while page := await self._in_thread(lambda: list(itertools.islice(hits, PAGE))):
            for key in page:
                yield key

    def _hits(self, query: Query) -> Iterator[InstanceKey]:
        talk = self._talk
        searches = talk.rooms.searches(talk.peer.principal)
        for hit in searches.hits(query, talk.peer.address):
            yield InstanceKey(hit.study, hit.series or "", hit.instance or "")

    async def _opened(
        self, key: InstanceKey, channel: Channel, originator: tuple[str, int] | None
    ) -> OutgoingDataset | None:
        """In the loop if nothing of it would block: a turn through a thread takes longer."""
        try:
            retrieve = self._talk.rooms.retrieve(self._talk.peer.principal)
            with contextlib.suppress(BlockingIOError):
                if (dataset := retrieve.dataset_at_hand(key, channel.syntaxes)) is not None:
                    return channel.opened(dataset, originator, at_once=True)
            return await self._in_thread(
                lambda: channel.opened(retrieve.dataset(key, channel.syntaxes), originator)
            )
        except (StreamsrvError, OSError) as error:
            known = system_error(error, "reading") if isinstance(error, OSError) else error
            name = self._talk.peer.principal.name
            log.warning("%s of %s: %s is not sent: %s", self.name, name, key.instance, known.detail)
            return None

    async def _tell(self) -> None:
        """A pending response with the numbers, if there is one to count."""
        now = time.monotonic()
        numbers = self._counts.numbers(with_remaining=True)
        if now - self._told < PENDING_PAUSE or not any(numbers[1:]) or not numbers[0]:
            return
        self._told = now
        await self._talk.send(
            self._talk.message(
                self._context.number, response(self.command, DimseStatus.PENDING, numbers=numbers)
            )
        )

    def _note_sent(self, study: str) -> None:
        """Once for each study: its instances come together."""
        if study == self._study:
            return
        self._study = study
        self._talk.rooms.note(self._talk.peer, Event.SENT, study=study, detail=self.name)

    async def _in_thread(self, call: Callable[..., Made], *arguments: object) -> Made:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._talk.rooms.threads, call, *arguments)


def wanted(identifier: Identifier, model: InformationModel) -> Query:
    """The search for the instances of an identifier (PS3.4 C.4.3.1.3). Raises BadRequest."""
    if identifier.level not in model.levels:
        raise BadRequest(f"(0008,0052) is none of {', '.join(model.levels)}")
    keys = []
    for level in model.levels if "PATIENT" in model.levels else ("PATIENT", *model.levels):
        tag = UNIQUE_KEYS[level]
        text = identifier.text(tag).strip()
        if text:
            keys.append((tag, text))
            if level == "PATIENT" and ("*" in text or "?" in text or "\\" in text):
                raise BadRequest("(0010,0020) is not one value without wildcards")
            if level != "PATIENT" and not all(UID.fullmatch(each) for each in text.split("\\")):
                raise BadRequest(f"({tag[:4]},{tag[4:]}) is no list of UIDs")
        if level == identifier.level:
            if not text:
                raise BadRequest(f"({tag[:4]},{tag[4:]}) has no value")
            break
    return search_of(Level.INSTANCE, keys)


def failed_list(instances: list[str], syntax: str) -> bytes:
    """The dataset of a final response: Failed SOP Instance UID List."""
    value = "\\".join(instances).encode()
    return element_of(FAILED_LIST, "UI", value, syntax == EXPLICIT_VR_LITTLE_ENDIAN)
