"""Which operation a command begins."""

from __future__ import annotations

from typing import TypeAlias

from streamsrv.dimse.protocol.commands import Command, CommandField, DimseStatus
from streamsrv.dimse.protocol.models import COMMITMENT, FIND, GET, MOVE
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.dimse.services.committing import CommitmentOperation
from streamsrv.dimse.services.finding import FindOperation
from streamsrv.dimse.services.moving import MoveOperation
from streamsrv.dimse.services.retrieving import RetrieveOperation
from streamsrv.dimse.services.storing import StoreOperation
from streamsrv.metrics import RequestKind


class RefusedOperation:
    """An operation that needs nothing but its answer. Its dataset is dropped."""

    received = 0

    def __init__(self, command: Command, status: DimseStatus) -> None:
        self.command = command
        self._status = status

    async def take(self, piece: memoryview) -> None:
        pass

    async def finish(self) -> OperationOutcome:
        return OperationOutcome(self._status)

    def cancel(self) -> None:
        pass

    async def abort(self) -> None:
        pass


Operation: TypeAlias = (
    StoreOperation | FindOperation | RetrieveOperation | CommitmentOperation | RefusedOperation
)
KINDS: dict[int, RequestKind] = {
    CommandField.C_STORE: RequestKind.C_STORE,
    CommandField.C_FIND: RequestKind.C_FIND,
    CommandField.C_GET: RequestKind.C_GET,
    CommandField.C_MOVE: RequestKind.C_MOVE,
    CommandField.C_ECHO: RequestKind.C_ECHO,
    CommandField.N_ACTION: RequestKind.COMMITMENT,
}
_SERVICES = {
    CommandField.C_FIND: (FIND, FindOperation),
    CommandField.C_GET: (GET, RetrieveOperation),
    CommandField.C_MOVE: (MOVE, MoveOperation),
}


def operation_of(talk: Conversation, command: Command, context: UsedContext) -> Operation:
    """The operation of a request. One of no service, or with a wrong command, is refused."""
    field, abstract = command.field, context.abstract_syntax
    if field == CommandField.C_ECHO:
        return RefusedOperation(command, DimseStatus.SUCCESS)
    if field == CommandField.C_STORE:
        if command.has_dataset:
            return StoreOperation(talk.rooms, talk.peer, command, (abstract, context.transfer_syntax))
        return RefusedOperation(command, DimseStatus.MISTYPED_ARGUMENT)
    if field == CommandField.N_ACTION and abstract == COMMITMENT == command.sop_class and command.has_dataset:
        return CommitmentOperation(talk, command, context)
    models, kind = _SERVICES.get(field, ({}, None))  # type: ignore[call-overload]
    model = models.get(abstract)
    if kind is None or model is None:
        return RefusedOperation(command, DimseStatus.UNRECOGNIZED_OPERATION)
    if command.sop_class != abstract:
        return RefusedOperation(command, DimseStatus.CLASS_NOT_SUPPORTED)
    if not command.has_dataset:
        return RefusedOperation(command, DimseStatus.MISTYPED_ARGUMENT)
    operation: Operation = kind(talk, command, model, context)
    return operation
