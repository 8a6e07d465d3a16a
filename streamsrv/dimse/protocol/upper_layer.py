"""The state machines of the two sides (PS3.8 9.2). Sans-IO. That of an acceptor:

    Sta2   AWAITING      A-ASSOCIATE-RQ -> AssociateRequest; anything else -> A-ABORT of the user (AA-1)
    Sta6   ESTABLISHED   P-DATA-TF -> Fragment; A-RELEASE-RQ -> Released; anything else -> A-ABORT of the
                         provider (AA-8)
    Sta13  CLOSING       PDUs are ignored until the peer closes the connection

Sta3 and Sta8 have no length here: the caller answers at once. That of a requestor:

    Sta5   AWAITING      A-ASSOCIATE-AC -> Acceptance; A-ASSOCIATE-RJ -> AssociationRejected
    Sta6   ESTABLISHED   P-DATA-TF -> Fragment; A-RELEASE-RQ and A-RELEASE-RP -> Ending.RELEASED
    Sta13  CLOSING       as above
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from streamsrv.dimse.protocol.pdus import (
    AbortReason,
    AbortSource,
    Acceptance,
    AssociateRequest,
    Fragment,
    PduBuffer,
    PduType,
    UpperLayerError,
    associate_accepted,
    associate_request,
    fragments,
)


class LayerState(Enum):
    AWAITING = auto()
    ESTABLISHED = auto()
    CLOSING = auto()


class Ending(Enum):
    """How the peer ends the association."""

    RELEASED = auto()
    ABORTED = auto()


class AssociationRejected(NamedTuple):
    """An A-ASSOCIATE-RJ (PS3.8 9.3.4, Table 9-21)."""

    result: int
    source: int
    reason: int


LayerEvent: TypeAlias = AssociateRequest | Fragment | Ending
RequestorEvent: TypeAlias = Acceptance | AssociationRejected | Fragment | Ending


class UpperLayer:
    """`longest` is the length of a P-DATA-TF that is taken, in bytes."""

    def __init__(self, longest: int) -> None:
        self.state = LayerState.AWAITING
        self._buffer = PduBuffer(longest)
        self.space = self._buffer.space

    @property
    def has_part(self) -> bool:
        """Whether a PDU has begun to arrive."""
        return self._buffer.has_part

    def accepted(self) -> None:
        """The request was answered with A-ASSOCIATE-AC."""
        self.state = LayerState.ESTABLISHED

    def ended(self) -> None:
        """The last PDU was sent."""
        self.state = LayerState.CLOSING

    def received(self, count: int) -> Iterator[LayerEvent]:
        """Yields the events of `count` more bytes in `space`. Answer each event before the next one. A
        Fragment is valid until the next call of `space`. Raises UpperLayerError."""
        try:
            for kind, body in self._buffer.pdus(count):
                yield from self._events(kind, body)
                if self.state is LayerState.CLOSING:
                    return
        except UpperLayerError as error:
            if self.state is LayerState.AWAITING:
                error.source, error.reason = AbortSource.USER, AbortReason.NOT_SPECIFIED
            raise

    def _events(self, kind: PduType, body: memoryview) -> Iterator[LayerEvent]:
        established = self.state is LayerState.ESTABLISHED
        if kind is PduType.DATA and established:
            yield from fragments(body)
        elif kind is PduType.REQUEST and not established:
            yield associate_request(body)
        elif kind is PduType.RELEASE and established:
            yield Ending.RELEASED
        elif kind is PduType.ABORT:
            yield Ending.ABORTED
        else:
            raise UpperLayerError(f"a {kind.name} PDU at this time", AbortReason.UNEXPECTED_PDU)


class RequestorLayer:
    """`longest` is the length of a P-DATA-TF that is taken, in bytes. `state` is set by the caller."""

    def __init__(self, longest: int) -> None:
        self.state = LayerState.AWAITING
        self._buffer = PduBuffer(longest, requests=True)
        self.space = self._buffer.space

    def received(self, count: int) -> Iterator[RequestorEvent]:
        """As that of UpperLayer."""
        for kind, body in self._buffer.pdus(count):
            established = self.state is LayerState.ESTABLISHED
            if kind is PduType.DATA and established:
                yield from fragments(body)
            elif kind is PduType.ACCEPT and not established:
                yield associate_accepted(body)
            elif kind is PduType.REJECT and not established and len(body) == 4:
                yield AssociationRejected(body[1], body[2], body[3])
            elif kind in (PduType.RELEASE, PduType.RELEASED) and established:
                yield Ending.RELEASED
            elif kind is PduType.ABORT:
                yield Ending.ABORTED
            else:
                raise UpperLayerError(f"a {kind.name} PDU at this time", AbortReason.UNEXPECTED_PDU)
