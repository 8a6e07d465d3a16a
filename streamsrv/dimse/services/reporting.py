"""The report of one Storage Commitment: which instances are stored safely (PS3.4 Annex J).

Strategy: a thread looks each instance up. The report goes over the association of the request if that is
still there. Else it goes over a new one, to the destination with the AE title of the peer. It is repeated
with growing waits, for a day, and by the next process if this one ends.

Rules of this file
- The report is a promise. An instance is committed if it is in the index, has the SOP class of the request,
  and its bytes are not registered as damaged. Each attempt looks again. Each acknowledged store is on the
  disk already.
- A peer gets no promise for an instance that its rule hides.
- A report that cannot be delivered is given up with a line in the log. The peer then asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dimse.channel import Channel, PeerLost
from streamsrv.dimse.destinations import MoveDestination
from streamsrv.dimse.protocol.identifiers import element_of, item_of
from streamsrv.dimse.protocol.models import COMMITMENT, COMMITMENT_INSTANCE
from streamsrv.dimse.rooms import DimsePeer, DimseRooms
from streamsrv.dimse.services.commitment_log import CommitmentRequest, KeptCommitment
from streamsrv.query.attributes import Level
from streamsrv.query.conditions import Query
from streamsrv.store import InstanceKey

log = logging.getLogger("streamsrv.dimse")

LOOKED_UP = 500  # instances at a time
COMMITTED, WITH_FAILURES = 1, 2  # event types
WAITS = (0.0, 5.0, 30.0, 120.0)  # seconds before each of the first attempts on a new association
LAST_WAIT, REPORTED_WITHIN = 600.0, 86_400.0  # seconds
TRANSACTION, REFERENCED, FAILED = 0x00081195, 0x00081199, 0x00081198
SOP_CLASS, INSTANCE, REASON, TITLE = 0x00081150, 0x00081155, 0x00081197, 0x00080054
PROPOSED = [(COMMITMENT, syntax) for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)]
# Failure Reason (PS3.3 C.14.1.1).
NO_INSTANCE, CLASS_CONFLICT, PROCESSING_FAILURE = 0x0112, 0x0119, 0x0110


class AskedOn(NamedTuple):
    """The association of the request."""

    channel: Channel
    context: int
    syntax: str


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


class CommitmentReport:
    """`title` is the AE title of this server."""

    def __init__(self, rooms: DimseRooms, peer: DimsePeer, kept: KeptCommitment, title: str) -> None:
        self._rooms = rooms
        self._peer = peer
        self._kept = kept
        self._request = kept.request
        self._title = title

    async def run(self, asked_on: AskedOn | None = None) -> None:
        """Ends when the report was delivered or given up."""
        if asked_on is None or not await self._reported(*asked_on):
            await self._reported_later()
        await asyncio.get_running_loop().run_in_executor(self._rooms.threads, self._kept.drop)

    async def _reported_later(self) -> None:
        """Over associations that this server requests."""
        name = self._peer.principal.name
        destination = self._rooms.dialer.destination(self._request.title)
        if destination is None:
            log.warning("a commitment is not reported: %s has left, and is not in dimse_destinations", name)
            return
        waits = itertools.chain(WAITS, itertools.repeat(LAST_WAIT))
        while time.time() - self._request.asked < REPORTED_WITHIN:
            await asyncio.sleep(next(waits))
            if await self._dialed(destination):
                return
        log.error("a commitment is given up: %s was not reached for a day", name)

    async def _dialed(self, destination: MoveDestination) -> bool:
        try:
            association = await self._rooms.dialer.dial(destination, PROPOSED, is_scp=True)
        except PeerLost as error:
            log.warning("a commitment is not reported to %s: %s", destination.title, error)
            return False
        try:
            contexts = association.channel.contexts.get(COMMITMENT)
            if not contexts:
                log.warning("%s does not accept Storage Commitment", destination.title)
                return False
            syntax, number = next(iter(contexts.items()))
            return await self._reported(association.channel, number, syntax)
        finally:
            await association.close()

    async def _reported(self, channel: Channel, context: int, syntax: str) -> bool:
        """Whether the peer has answered."""
        name, loop = self._peer.principal.name, asyncio.get_running_loop()
        try:
            event, dataset = await loop.run_in_executor(self._rooms.threads, self._made, syntax)
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.error("a request for commitment of %s cannot be read: %s", name, error)
            return False
        try:
            status = await channel.report(context, COMMITMENT, COMMITMENT_INSTANCE, event, dataset)
        except PeerLost as error:
            log.info("a commitment is not reported to %s: %s", name, error)
            return False
        if status:
            log.warning("%s answered a commitment with %04X", name, status)
        return True

    # In a thread

    def _made(self, syntax: str) -> tuple[int, bytes]:
        """Event type and dataset."""
        request = self._kept.whole()
        try:
            result = self._looked_up(request)
        except Exception as error:
            self._rooms.failure(self._peer, error, "storage commitment")
            failed = [(*each, PROCESSING_FAILURE) for each in request.references]
            result = CommitmentResult(request.transaction, failed=failed)
        numbers = len(result.committed), len(result.failed)
        log.info("storage commitment for %s: %d instances, %d not there", self._peer.principal.name, *numbers)
        return result.event, result.dataset(syntax, self._title)

    def _looked_up(self, request: CommitmentRequest) -> CommitmentResult:
        result, waiting = CommitmentResult(request.transaction), iter(request.references)
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
        rooms, peer = self._rooms, self._peer
        retrieve = rooms.retrieve(peer.principal)
        query = Query(Level.INSTANCE, uids={Level.INSTANCE: frozenset(instances)})
        for hit in rooms.searches(peer.principal).hits(query, peer.address):
            row = retrieve.row(InstanceKey(hit.study, hit.series or "", hit.instance or ""))
            if row is not None:
                yield row.key.instance, "" if row.damaged else row.sop_class_uid
