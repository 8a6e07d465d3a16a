"""Storage Commitment, push model (PS3.4 Annex J): an N-ACTION asks whether instances are stored safely. An
N-EVENT-REPORT answers later (reporting.py).

Strategy: the request is acknowledged as soon as its dataset is read and kept on the disk. So its peer gets
the report also after a crash of this process.
"""

from __future__ import annotations

import asyncio
import logging
import time

from streamsrv.audit.entries import Event, EventOutcome
from streamsrv.dicom.json.values import text, values
from streamsrv.dicom.values import UID
from streamsrv.dimse.protocol.commands import Command, DimseStatus
from streamsrv.dimse.protocol.identifiers import dataset_of
from streamsrv.dimse.protocol.models import COMMITMENT_INSTANCE
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.dimse.services.commitment_log import CommitmentRequest, KeptCommitment
from streamsrv.dimse.services.reporting import (
    INSTANCE,
    REFERENCED,
    SOP_CLASS,
    TRANSACTION,
    AskedOn,
    CommitmentReport,
)
from streamsrv.errors import NotDicom, Overloaded, system_error
from streamsrv.web.access.principal import Right

log = logging.getLogger("streamsrv.dimse")

LONGEST_REQUEST = 4 << 20  # bytes of its dataset; a reference has about 120
REQUEST_ACTION = 1


class CommitmentOperation:
    """Call `take` for each fragment of the dataset, then `finish`. After the response has been sent, `report`
    is called."""

    def __init__(self, talk: Conversation, command: Command, context: UsedContext) -> None:
        self.command = command
        self.received = 0
        self._talk = talk
        self._context = context
        self._content = bytearray()
        self._kept: KeptCommitment | None = None

    async def take(self, piece: memoryview) -> None:
        self.received += len(piece)
        if self.received <= LONGEST_REQUEST:
            self._content += piece

    def cancel(self) -> None:
        """The report is a promise: it goes over another association then."""

    async def abort(self) -> None:
        """The request has not arrived whole."""

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
            found = await talk.read(references, bytes(self._content), self._context.transfer_syntax)
            await self._keep(*found)
        except NotDicom as error:
            return OperationOutcome(DimseStatus.INVALID_ARGUMENT, error.detail)
        except (OSError, Overloaded) as error:
            known = system_error(error, "N-ACTION") if isinstance(error, OSError) else error
            log.error("a request for commitment of %s is refused: %s", talk.peer.principal.name, known.detail)
            return OperationOutcome(DimseStatus.RESOURCE_LIMITATION, known.detail)
        finally:
            self._content.clear()
        return OperationOutcome(DimseStatus.SUCCESS)

    async def _keep(self, transaction: str, wanted: list[tuple[str, str]]) -> None:
        """Raises OSError and Overloaded."""
        rooms, peer = self._talk.rooms, self._talk.peer
        title = peer.principal.name.partition(":")[2]
        asked = CommitmentRequest(title, peer.address, time.time(), transaction, tuple(wanted))
        loop = asyncio.get_running_loop()
        self._kept = await loop.run_in_executor(rooms.threads, rooms.commitments.keep, asked)

    def report(self) -> None:
        """The request is acknowledged, or its peer has left meanwhile. Does not block."""
        if self._kept is not None:
            talk, context = self._talk, self._context
            report = CommitmentReport(talk.rooms, talk.peer, self._kept, talk.title)
            asked_on = AskedOn(talk.channel, context.number, context.transfer_syntax)
            talk.rooms.background.start(report.run(asked_on))


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
