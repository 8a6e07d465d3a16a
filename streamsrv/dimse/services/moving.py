"""One C-MOVE (PS3.4 C.4.2): the sub-operations of a C-GET, over an association to the destination.

Rules of this file
- The destination is one of the settings, by its AE title. The rights and the rule are those of the peer that
  asks.
- The syntaxes of the stored instances are proposed, and the two uncompressed ones beside them, each in a
  context of its own: so the destination tells each syntax that it takes.
- If the destination is lost, the sub-operations that remain have failed.
"""

from __future__ import annotations

from streamsrv.dicom.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from streamsrv.dimse.channel import PeerLost
from streamsrv.dimse.destinations import MoveDestination
from streamsrv.dimse.protocol.commands import DimseStatus
from streamsrv.dimse.rooms import OperationOutcome
from streamsrv.dimse.services.retrieving import RetrieveOperation
from streamsrv.query.conditions import Query

UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)


class MoveOperation(RetrieveOperation):
    name = "C-MOVE"

    async def _performed(self, query: Query) -> OperationOutcome:
        destination = self._talk.rooms.dialer.destination(self.command.destination)
        if destination is None:
            comment = f"{self.command.destination!r} is not in dimse_destinations"
            return OperationOutcome(DimseStatus.DESTINATION_UNKNOWN, comment)
        self._counts.total, proposed = await self._in_thread(self._proposals, query)
        if not self._counts.total:
            return self._outcome()
        try:
            await self._moved(query, destination, proposed)
        except PeerLost as error:
            self._counts.fail_rest()
            return self._outcome()._replace(comment=f"{destination.title}: {error}")
        return self._outcome()

    async def _moved(
        self, query: Query, destination: MoveDestination, proposed: list[tuple[str, str]]
    ) -> None:
        association = await self._talk.rooms.dialer.dial(destination, proposed)
        try:
            # The name of the AE that asks, without the way of its login.
            title = self._talk.peer.principal.name.partition(":")[2]
            await self._send_all(query, association.channel, (title, self.command.message_id))
        finally:
            await association.close()

    def _proposals(self, query: Query) -> tuple[int, list[tuple[str, str]]]:
        """The number of the instances, and the contexts: those of stored syntaxes first."""
        retrieve = self._talk.rooms.retrieve(self._talk.peer.principal)
        number, stored = 0, dict[tuple[str, str], None]()
        for key in self._hits(query):
            number += 1
            row = retrieve.row(key)
            if row is not None:
                stored[row.sop_class_uid, row.transfer_syntax] = None
        for syntax in UNCOMPRESSED:
            stored |= dict.fromkeys([(sop_class, syntax) for sop_class, _ in stored])
        return number, list(stored)
