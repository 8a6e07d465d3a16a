"""Storage Commitment, push model (PS3.4 Annex J): an N-ACTION asks whether instances are stored safely. An
N-EVENT-REPORT answers later.

Strategy: the request is acknowledged as soon as its dataset is read. Then a thread looks each instance up.
The report goes over the same association if it is still there. Else it goes over a new one, to the
destination with the AE title of the peer. It is repeated with growing waits.

Rules of this file
- The report is a promise. An instance is committed if it is in the index, has the SOP class of the request,
  and its bytes are not registered as damaged. Each acknowledged store is on the disk already.
- A peer gets no promise for an instance that its rule hides.
- A report that cannot be delivered is given up with a line in the log. The peer then asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from streamsrv.audit.entries import Event, EventOutcome
from streamsrv.dicom.json.values import text, values
from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dicom.values import UID
from streamsrv.dimse.channel import Channel, PeerLost
from streamsrv.dimse.protocol.commands import Command, DimseStatus
from streamsrv.dimse.protocol.identifiers import dataset_of, element_of, item_of
from streamsrv.dimse.protocol.models import COMMITMENT, COMMITMENT_INSTANCE
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.errors import NotDicom
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import Query
from streamsrv.store import InstanceKey
from streamsrv.web.access.principal import Right

log = logging.getLogger("streamsrv.dimse")

LONGEST_REQUEST = 4 << 20  # bytes of its dataset; a reference has about 120
LOOKED_UP = 500  # instances at a time
REQUEST_ACTION = 1
COMMITTED, WITH_FAILURES = 1, 2  # event types
WAITS = (0.0, 5.0, 30.0, 120.0, 600.0)  # seconds before each attempt to report
TRANSACTION, REFERENCED, FAILED = 0x00081195, 0x00081199, 0x00081198
SOP_CLASS, INSTANCE, REASON, TITLE = 0x00081150, 0x00081155, 0x00081197, 0x00080054
PROPOSED = [(COMMITMENT, syntax) for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)]
# Failure Reason (PS3.3 C.14.1.1).
NO_INSTANCE, CLASS_CONFLICT, PROCESSING_FAILURE = 0x0112, 0x0119, 0x0110


@dataclass(slots=True)
class CommitmentResult:
    """References are pairs of SOP Class and Instance UID. `failed` has the reason too."""

    transaction: str
    committed: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def event(self) -> int:
        return WITH_FAILURES if self.failed else COMMITTED

    def dataset(self, syntax: str, title: str) -> bytes:
        """The dataset of the report (PS3.4 Table J.3-2)."""
        explicit = syntax == EXPLICIT_VR_LITTLE_ENDIAN
        elements = [element_of(TITLE, "AE", title.encode(), explicit)]
        elements.append(element_of(TRANSACTION, "UI", self.transaction.encode(), explicit))
        if self.failed:
            failed = b"".join(item_of(_reference(*each, explicit=explicit)) for each in self.failed)
            elements.append(element_of(FAILED, "SQ", failed, explicit))
        if self.committed:
            committed = b"".join(item_of(_reference(*each, explicit=explicit)) for each in self.committed)
            elements.append(element_of(REFERENCED, "SQ", committed, explicit))
        return b"".join(elements)


def _reference(sop_class: str, instance: str, reason: int | None = None, *, explicit: bool) -> bytes:
    elements = [
        element_of(SOP_CLASS, "UI", sop_class.encode(), explicit),
        element_of(INSTANCE, "UI", instance.encode(), explicit),
    ]
    if reason is not None:
        elements.append(element_of(REASON, "US", reason.to_bytes(2, "little"), explicit))
    return b"".join(elements)


class CommitmentOperation:
    """Call `take` for each fragment of the dataset, then `finish`. After the response has been sent, `report`
    is called."""

    def __init__(self, talk: Conversation, command: Command, context: UsedContext) -> None:
        self.command = command
        self.received = 0
        self._talk = talk
        self._context = context
        self._content = bytearray()
        self._wanted: tuple[str, list[tuple[str, str]]] | None = None

    async def take(self, piece: memoryview) -> None:
        self.received += len(piece)
        if self.received <= LONGEST_REQUEST:
            self._content += piece

    def cancel(self) -> None:
        """The report is a promise: it goes over another association then."""

    async def abort(self) -> None:
        self._wanted = None

    async def finish(self) -> OperationOutcome:
        talk, command = self._talk, self.command
        if not talk.peer.principal.rights & (Right.STORE | Right.READ):
            talk.rooms.note(talk.peer, Event.REFUSED, EventOutcome.MINOR_FAILURE, detail="N-ACTION")
            return OperationOutcome(DimseStatus.NOT_AUTHORIZED, "this peer may neither store nor read")
        if command.instance != COMMITMENT_INSTANCE:
            return OperationOutcome(DimseStatus.NO_SUCH_INSTANCE)
        if command.type_id != REQUEST_ACTION:
            return OperationOutcome(DimseStatus.NO_SUCH_ACTION)
        if self.received > LONGEST_REQUEST:
            comment = f"the request has more than {LONGEST_REQUEST} bytes: ask for fewer instances"
            return OperationOutcome(DimseStatus.RESOURCE_LIMITATION, comment)
        try:
            self._wanted = await talk.read(references, bytes(self._content), self._context.transfer_syntax)
        except NotDicom as error:
            return OperationOutcome(DimseStatus.INVALID_ARGUMENT, error.detail)
        finally:
            self._content.clear()
        return OperationOutcome(DimseStatus.SUCCESS)

    def report(self) -> None:
        """The request is acknowledged. Does not block."""
        if self._wanted is not None:
            self._talk.rooms.background.start(self._reported(*self._wanted))

    async def _reported(self, transaction: str, wanted: list[tuple[str, str]]) -> None:
        talk, loop = self._talk, asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(talk.rooms.threads, self._looked_up, transaction, wanted)
        except Exception as error:
            talk.rooms.failure(talk.peer, error, "storage commitment")
            failed = [(*each, PROCESSING_FAILURE) for each in wanted]
            result = CommitmentResult(transaction, failed=failed)
        name = talk.peer.principal.name
        numbers = len(result.committed), len(result.failed)
        log.info("storage commitment for %s: %d instances, %d not there", name, *numbers)
        try:
            await self._send(talk.channel, self._context.number, self._context.transfer_syntax, result)
        except PeerLost:
            await self._send_later(result)

    async def _send_later(self, result: CommitmentResult) -> None:
        """Over associations that this server requests."""
        rooms, name = self._talk.rooms, self._talk.peer.principal.name
        destination = rooms.dialer.destination(name.partition(":")[2])
        if destination is None:
            log.warning("a commitment is not reported: %s has left, and is not in dimse_destinations", name)
            return
        for wait in WAITS:
            await asyncio.sleep(wait)
            try:
                association = await rooms.dialer.dial(destination, PROPOSED, is_scp=True)
                try:
                    contexts = association.channel.contexts.get(COMMITMENT)
                    if not contexts:
                        raise PeerLost("it does not accept Storage Commitment")
                    syntax, number = next(iter(contexts.items()))
                    await self._send(association.channel, number, syntax, result)
                    return
                finally:
                    await association.close()
            except PeerLost as error:
                log.warning("a commitment is not reported to %s: %s", destination.title, error)

    async def _send(self, channel: Channel, context: int, syntax: str, result: CommitmentResult) -> None:
        """Raises PeerLost."""
        loop, talk = asyncio.get_running_loop(), self._talk
        dataset = await loop.run_in_executor(talk.rooms.threads, result.dataset, syntax, talk.title)
        status = await channel.report(context, COMMITMENT, COMMITMENT_INSTANCE, result.event, dataset)
        if status:
            log.warning("%s answered a commitment with %04X", talk.peer.principal.name, status)

    # In a thread

    def _looked_up(self, transaction: str, wanted: Sequence[tuple[str, str]]) -> CommitmentResult:
        result, waiting = CommitmentResult(transaction), iter(wanted)
        while some := list(itertools.islice(waiting, LOOKED_UP)):
            found = dict(self._found([instance for _, instance in some]))
            for sop_class, instance in some:
                stored = found.get(instance)
                if stored == sop_class:
                    result.committed.append((sop_class, instance))
                    continue
                reason = CLASS_CONFLICT if stored else PROCESSING_FAILURE if stored == "" else NO_INSTANCE
                result.failed.append((sop_class, instance, reason))
        return result

    def _found(self, instances: list[str]) -> Iterator[tuple[str, str]]:
        """SOP Instance and Class UID of the stored ones; an empty class if the bytes are damaged."""
        rooms, peer = self._talk.rooms, self._talk.peer
        retrieve = rooms.retrieve(peer.principal)
        query = Query(Level.INSTANCE, uids={Level.INSTANCE: frozenset(instances)})
        for hit in rooms.searches(peer.principal).hits(query, peer.address):
            row = retrieve.row(InstanceKey(hit.study, hit.series or "", hit.instance or ""))
            if row is not None:
                yield row.key.instance, "" if row.damaged else row.sop_class_uid


def references(content: bytes, syntax: str) -> tuple[str, list[tuple[str, str]]]:
    """The Transaction UID, and SOP Class and Instance UID of each reference (PS3.4 Table J.3-1). Raises
    NotDicom."""
    dataset = dataset_of(content, syntax)
    transaction = text(dataset, f"{TRANSACTION:08X}")
    if not UID.fullmatch(transaction):
        raise NotDicom("Transaction UID (0008,1195) is no UID")
    found = []
    for item in values(dataset, f"{REFERENCED:08X}"):
        pair = text(item, f"{SOP_CLASS:08X}"), text(item, f"{INSTANCE:08X}")
        if not all(map(UID.fullmatch, pair)):
            raise NotDicom("an item of (0008,1199) has no SOP Class or Instance UID")
        found.append(pair)
    if not found:
        raise NotDicom("Referenced SOP Sequence (0008,1199) has no item")
    return transaction, found
