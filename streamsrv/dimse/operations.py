"""Which operation a command begins."""

from __future__ import annotations

from typing import TypeAlias

from streamsrv.dimse.commands import Command, CommandField, DimseStatus
from streamsrv.dimse.finding import FindOperation
from streamsrv.dimse.models import FIND, GET
from streamsrv.dimse.retrieving import RetrieveOperation
from streamsrv.dimse.rooms import Conversation, OperationOutcome, UsedContext
from streamsrv.dimse.storing import StoreOperation
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


Operation: TypeAlias = StoreOperation | FindOperation | RetrieveOperation | RefusedOperation
KINDS: dict[int, RequestKind] = {
    CommandField.C_STORE: RequestKind.C_STORE,
    CommandField.C_FIND: RequestKind.C_FIND,
    CommandField.C_GET: RequestKind.C_GET,
    CommandField.C_ECHO: RequestKind.C_ECHO,
}
_MODELS = {CommandField.C_FIND: FIND, CommandField.C_GET: GET}


def operation_of(talk: Conversation, command: Command, context: UsedContext) -> Operation:
    """The operation of a request. One of no service, or with a wrong command, is refused."""
    field, abstract = command.field, context.abstract_syntax
    if field == CommandField.C_ECHO:
        return RefusedOperation(command, DimseStatus.SUCCESS)
    if field == CommandField.C_STORE:
        if command.has_dataset:
            return StoreOperation(talk.rooms, talk.peer, command, (abstract, context.transfer_syntax))
        return RefusedOperation(command, DimseStatus.MISTYPED_ARGUMENT)
    model = _MODELS.get(field, {}).get(abstract)  # type: ignore[call-overload]
    if model is None:
        return RefusedOperation(command, DimseStatus.UNRECOGNIZED_OPERATION)
    if command.sop_class != abstract:
        return RefusedOperation(command, DimseStatus.CLASS_NOT_SUPPORTED)
    if not command.has_dataset:
        return RefusedOperation(command, DimseStatus.MISTYPED_ARGUMENT)
    kind = FindOperation if field == CommandField.C_FIND else RetrieveOperation
    return kind(talk, command, model, context)
