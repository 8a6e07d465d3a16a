"""The parts that C-FIND, C-GET and C-MOVE share: an identifier arrives in fragments, and a peer needs a
right."""

from __future__ import annotations

from streamsrv.audit.entries import Event, EventOutcome
from streamsrv.dimse.protocol.commands import Command, DimseStatus
from streamsrv.dimse.protocol.identifiers import LONGEST_IDENTIFIER, Identifier, identifier_of
from streamsrv.dimse.protocol.models import InformationModel
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.web.access.principal import Right


class QueryOperation:
    """Call `take` for each fragment of the identifier, then `finish` of the operation."""

    name: str
    right: Right

    def __init__(
        self, talk: Conversation, command: Command, model: InformationModel, context: UsedContext
    ) -> None:
        self.command = command
        self.received = 0
        self._talk = talk
        self._model = model
        self._context = context
        self._content = bytearray()
        self._cancelled = False

    async def take(self, piece: memoryview) -> None:
        self.received += len(piece)
        if self.received <= LONGEST_IDENTIFIER:
            self._content += piece

    def cancel(self) -> None:
        self._cancelled = True

    async def abort(self) -> None:
        self.cancel()

    def _refused(self) -> OperationOutcome | None:
        """The final response if the operation may not begin."""
        talk = self._talk
        if self.right not in talk.peer.principal.rights:
            talk.rooms.note(talk.peer, Event.REFUSED, EventOutcome.MINOR_FAILURE, detail=self.name)
            needed = "search" if self.right is Right.SEARCH else "read"
            return OperationOutcome(DimseStatus.NOT_AUTHORIZED, f"this peer may not {needed}")
        if self.received > LONGEST_IDENTIFIER:
            return OperationOutcome(DimseStatus.CANNOT_UNDERSTAND, "the identifier is too long")
        return None

    async def _identifier(self) -> Identifier:
        """Raises BadRequest, NotDicom."""
        return await self._talk.read(identifier_of, bytes(self._content), self._context.transfer_syntax)
