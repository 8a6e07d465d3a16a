"""Protocol data units of the upper layer (PS3.8 9.3), from and to bytes. Sans-IO.

Strategy: the socket writes into one buffer. A PDU is a view of it, and so are its PDVs: the only copy of a
dataset is the one into the body that is stored.

Rules of this file
- A length is checked before its bytes are awaited, so a peer cannot make the buffer grow.
- Unknown items of user information are ignored (PS3.8 9.3.1). A malformed PDU ends the association.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from streamsrv.errors import StreamsrvError

HEADER = 6  # bytes: type, reserved, length
_HEADER = struct.Struct(">BxI")
_ITEM = struct.Struct(">BxH")
_PDV = struct.Struct(">IBB")
LONGEST_REQUEST = 1 << 20  # bytes of an A-ASSOCIATE-RQ; 128 contexts with 40 syntaxes have 200 kB
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
PROTOCOL_VERSION = 1
COMMAND, LAST = 1, 2  # bits of the message control header (PS3.8 E.2)
LONGEST_UID = 64
READ_AHEAD = 1 << 17  # bytes of the buffer behind the longest PDU


class PduType(IntEnum):
    """PS3.8 9.3.2 to 9.3.8."""

    REQUEST = 1
    ACCEPT = 2
    REJECT = 3
    DATA = 4
    RELEASE = 5
    RELEASED = 6
    ABORT = 7


class AbortSource(IntEnum):
    """PS3.8 Table 9-26."""

    USER = 0
    PROVIDER = 2


class AbortReason(IntEnum):
    """PS3.8 Table 9-26, of the provider."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class UpperLayerError(StreamsrvError):
    """The association ends with this A-ABORT. `detail` is for the log."""

    def __init__(
        self,
        detail: str,
        reason: AbortReason = AbortReason.INVALID_PARAMETER,
        source: AbortSource = AbortSource.PROVIDER,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.source = source


class ProposedContext(NamedTuple):
    """A presentation context of a request (PS3.8 9.3.2.2)."""

    number: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


class AssociateRequest(NamedTuple):
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2, PS3.7 Annex D). AE titles have no padding. `longest` is the length of
    the PDVs of a P-DATA-TF that the peer takes, in bytes; 0: any. `window` is the number of operations that
    the peer may invoke at a time; 0: any; 1 without the item. `roles` are (SOP class, SCU, SCP),
    `extended` are (SOP class, service class application information)."""

    version: int
    called: str
    calling: str
    application_context: str
    contexts: tuple[ProposedContext, ...]
    longest: int = 0
    implementation: str = ""
    window: int = 1
    has_window: bool = False
    roles: tuple[tuple[str, int, int], ...] = ()
    extended: tuple[tuple[str, bytes], ...] = ()


class AcceptedContext(NamedTuple):
    """The answer to one presentation context. `result` is that of PS3.8 Table 9-18: 0 is acceptance."""

    number: int
    result: int
    transfer_syntax: str


class Acceptance(NamedTuple):
    """An A-ASSOCIATE-AC. `longest` is the length of the PDVs of a P-DATA-TF that the peer takes; 0: any."""

    contexts: tuple[AcceptedContext, ...]
    longest: int


class Fragment(NamedTuple):
    """One PDV (PS3.8 9.3.5.1). `view` is a part of the receive buffer."""

    context: int
    is_command: bool
    is_last: bool
    view: memoryview


Pdu: TypeAlias = tuple[PduType, memoryview]


class PduBuffer:
    """The receive buffer of one connection. `longest` is the length of a P-DATA-TF that is taken. `requests`
    is for the side that requests the association."""

    def __init__(self, longest: int, *, requests: bool = False) -> None:
        opening = PduType.ACCEPT if requests else PduType.REQUEST
        self._lengths = {PduType.DATA: longest, PduType.ACCEPT: 0, opening: LONGEST_REQUEST}
        self._memory = bytearray(HEADER + longest + READ_AHEAD)
        self._start = self._end = 0
        self._needed = HEADER  # bytes of the PDU at `_start`, as far as known

    @property
    def has_part(self) -> bool:
        """Whether a PDU has begun to arrive."""
        return self._end > self._start

    def space(self) -> memoryview:
        """The place of the next bytes. Views of PDUs are invalid from now on."""
        if self._start == self._end:
            self._start = self._end = 0
        if len(self._memory) - self._start < self._needed or self._end == len(self._memory):
            rest = bytes(memoryview(self._memory)[self._start : self._end])
            if len(self._memory) < self._needed:
                self._memory = bytearray(self._needed + READ_AHEAD)
            self._memory[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return memoryview(self._memory)[self._end :]

    def pdus(self, received: int) -> Iterator[Pdu]:
        """Yields the whole PDUs, after so many more bytes. Raises UpperLayerError."""
        self._end += received
        view = memoryview(self._memory)
        while self._end - self._start >= HEADER:
            number, length = _HEADER.unpack_from(view, self._start)
            kind = self._checked(number, length)
            self._needed = HEADER + length
            if self._end - self._start < self._needed:
                return
            begin = self._start + HEADER
            self._start, self._needed = begin + length, HEADER
            yield kind, view[begin : begin + length]

    def _checked(self, number: int, length: int) -> PduType:
        try:
            kind = PduType(number)
        except ValueError:
            raise UpperLayerError(f"PDU type {number:02X}", AbortReason.UNRECOGNIZED_PDU) from None
        if length > self._lengths.get(kind, 4):
            raise UpperLayerError(f"a {kind.name} PDU of {length} bytes")
        return kind


# Reading


def fragments(body: memoryview) -> Iterator[Fragment]:
    """Yields the PDVs of a P-DATA-TF. Raises UpperLayerError."""
    at, end = 0, len(body)
    if not end:
        raise UpperLayerError("a P-DATA-TF without a PDV")
    while at < end:
        if end - at < _PDV.size:
            raise UpperLayerError("a PDV that ends in its head")
        length, context, control = _PDV.unpack_from(body, at)
        if length < 2 or at + 4 + length > end:
            raise UpperLayerError(f"a PDV of {length} bytes in a P-DATA-TF of {end}")
        yield Fragment(context, bool(control & COMMAND), bool(control & LAST), body[at + 6 : at + 4 + length])
        at += 4 + length


def _items(body: memoryview, at: int = 0) -> Iterator[tuple[int, memoryview]]:
    while at < len(body):
        if len(body) - at < _ITEM.size:
            raise UpperLayerError("an item that ends in its head")
        kind, length = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        if at + length > len(body):
            raise UpperLayerError(f"an item {kind:02X} that is longer than its PDU")
        yield kind, body[at : at + length]
        at += length


def _text(value: memoryview) -> str:
    """Characters other than those of ISO 646 become question marks."""
    return bytes(value).decode("ascii", "replace").replace("�", "?").strip(" \0")


def _uid(value: memoryview) -> str:
    uid = _text(value)
    if not uid or len(uid) > LONGEST_UID or not set(uid) <= set("0123456789."):
        raise UpperLayerError("a malformed UID in an A-ASSOCIATE-RQ")
    return uid


def associate_request(body: memoryview) -> AssociateRequest:
    """Reads an A-ASSOCIATE-RQ. Raises UpperLayerError."""
    if len(body) < 68:
        raise UpperLayerError("an A-ASSOCIATE-RQ without its fixed part")
    version = int.from_bytes(body[:2], "big")
    application_context, contexts, user = "", dict[int, ProposedContext](), dict[str, object]()
    for kind, value in _items(body, 68):
        if kind == 0x10:
            application_context = _text(value)
        elif kind == 0x20:
            context = _proposed(value)
            if context.number in contexts:
                raise UpperLayerError(f"two presentation contexts with the id {context.number}")
            contexts[context.number] = context
        elif kind == 0x50:
            user = _user_information(value)
    if not contexts:
        raise UpperLayerError("an A-ASSOCIATE-RQ without presentation contexts")
    titles = _text(body[4:20]), _text(body[20:36])
    return AssociateRequest(version, *titles, application_context, tuple(contexts.values()), **user)  # type: ignore[arg-type]


def associate_accepted(body: memoryview) -> Acceptance:
    """Reads an A-ASSOCIATE-AC. Raises UpperLayerError."""
    if len(body) < 68:
        raise UpperLayerError("an A-ASSOCIATE-AC without its fixed part")
    contexts, longest = list[AcceptedContext](), 0
    for kind, value in _items(body, 68):
        if kind == 0x21 and len(value) >= 4:
            # The syntax of a context that is not accepted has no meaning.
            syntaxes = [_text(inner) for item, inner in _items(value, 4) if item == 0x40]
            contexts.append(AcceptedContext(value[0], value[2], syntaxes[0] if syntaxes else ""))
        elif kind == 0x50:
            found = _user_information(value).get("longest", 0)
            longest = found if isinstance(found, int) else 0
    return Acceptance(tuple(contexts), longest)


def _proposed(value: memoryview) -> ProposedContext:
    if len(value) < 4 or value[0] % 2 == 0:
        raise UpperLayerError("a presentation context without an odd id")
    abstract, syntaxes = "", list[str]()
    for kind, inner in _items(value, 4):
        if kind == 0x30:
            abstract = _uid(inner)
        elif kind == 0x40:
            syntaxes.append(_uid(inner))
    if not abstract or not syntaxes:
        raise UpperLayerError("a presentation context without abstract or transfer syntax")
    return ProposedContext(value[0], abstract, tuple(syntaxes))


def _user_information(value: memoryview) -> dict[str, object]:
    """Fields of AssociateRequest (PS3.8 Annex D, PS3.7 D.3.3)."""
    found: dict[str, object] = {}
    roles: list[tuple[str, int, int]] = []
    extended: list[tuple[str, bytes]] = []
    for kind, inner in _items(value):
        if kind in (0x51, 0x53):
            if len(inner) != 4:
                raise UpperLayerError(f"an item {kind:02X} of {len(inner)} bytes")
            if kind == 0x51:
                found["longest"] = int.from_bytes(inner, "big")
            else:
                found |= {"window": int.from_bytes(inner[:2], "big"), "has_window": True}
        elif kind == 0x52:
            found["implementation"] = _text(inner)
        elif kind == 0x54:
            length = int.from_bytes(inner[:2], "big")
            if len(inner) != length + 4:
                raise UpperLayerError("a malformed role selection")
            roles.append((_uid(inner[2:-2]), inner[-2], inner[-1]))
        elif kind == 0x56:
            end = 2 + int.from_bytes(inner[:2], "big")
            if len(inner) < end:
                raise UpperLayerError("a malformed extended negotiation")
            extended.append((_uid(inner[2:end]), bytes(inner[end:])))
    return found | {"roles": tuple(roles), "extended": tuple(extended)}


# Writing


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _pdu(kind: PduType, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body)) + body


def associate_rq(
    called: str,
    calling: str,
    contexts: Sequence[ProposedContext],
    *,
    longest: int,
    implementation: tuple[str, str],
    roles: Sequence[tuple[str, int, int]] = (),
) -> bytes:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2). `longest` and `implementation` are those of `associate_accept`."""
    user = [_item(0x51, longest.to_bytes(4, "big")), _item(0x52, implementation[0].encode())]
    user += [_item(0x54, _named(uid) + bytes((scu, scp))) for uid, scu, scp in roles]
    user.append(_item(0x55, implementation[1].encode()))
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for number, abstract, syntaxes in contexts:
        inner = [_item(0x30, abstract.encode()), *(_item(0x40, syntax.encode()) for syntax in syntaxes)]
        items.append(_item(0x20, bytes((number, 0, 0, 0)) + b"".join(inner)))
    items.append(_item(0x50, b"".join(user)))
    head = struct.pack(">H2x16s16s32x", PROTOCOL_VERSION, _title(called), _title(calling))
    return _pdu(PduType.REQUEST, head + b"".join(items))


def associate_accept(
    request: AssociateRequest,
    contexts: Sequence[AcceptedContext],
    *,
    longest: int,
    window: int,
    implementation: tuple[str, str],
    roles: Sequence[tuple[str, int, int]] = (),
    extended: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """The A-ASSOCIATE-AC (PS3.8 9.3.3). `longest` bytes of PDVs are taken in a PDU. `implementation` is class
    UID and version name. `roles` and `extended` answer those of the request."""
    user = [
        _item(0x51, longest.to_bytes(4, "big")),
        _item(0x52, implementation[0].encode()),
    ]
    if request.has_window:
        user.append(_item(0x53, struct.pack(">HH", window, 1)))
    user += [_item(0x54, _named(uid) + bytes((scu, scp))) for uid, scu, scp in roles]
    user.append(_item(0x55, implementation[1].encode()))
    user += [_item(0x56, _named(uid) + information) for uid, information in extended]
    items = [_item(0x10, APPLICATION_CONTEXT.encode())]
    for number, result, syntax in contexts:
        items.append(_item(0x21, bytes((number, 0, result, 0)) + _item(0x40, syntax.encode())))
    items.append(_item(0x50, b"".join(user)))
    head = struct.pack(">H2x16s16s32x", PROTOCOL_VERSION, _title(request.called), _title(request.calling))
    return _pdu(PduType.ACCEPT, head + b"".join(items))


def _named(uid: str) -> bytes:
    """A UID behind its length."""
    return struct.pack(">H", len(uid)) + uid.encode()


def _title(text: str) -> bytes:
    return text.encode("ascii", "replace").ljust(16)


def associate_reject(result: int, source: int, reason: int) -> bytes:
    """PS3.8 9.3.4, Table 9-21."""
    return _pdu(PduType.REJECT, bytes((0, result, source, reason)))


def release_request() -> bytes:
    """PS3.8 9.3.6."""
    return _pdu(PduType.RELEASE, bytes(4))


def release_response() -> bytes:
    """PS3.8 9.3.7."""
    return _pdu(PduType.RELEASED, bytes(4))


def abort(source: int, reason: int) -> bytes:
    """PS3.8 9.3.8."""
    return _pdu(PduType.ABORT, bytes((0, 0, source, reason)))


def data_pdus(context: int, content: bytes, longest: int, *, is_command: bool = False) -> Iterator[bytes]:
    """P-DATA-TF PDUs of a whole command set or dataset, in fragments. The peer takes `longest` bytes of PDVs
    in a PDU."""
    room = longest - _PDV.size & ~1
    for at in range(0, len(content), room):
        piece = content[at : at + room]
        control = (COMMAND if is_command else 0) | (LAST if at + room >= len(content) else 0)
        yield data_head(context, control, len(piece)) + piece


def data_head(context: int, control: int, length: int) -> bytes:
    """The heads of a P-DATA-TF with one PDV, and of this PDV, before `length` bytes of a fragment."""
    return _HEADER.pack(PduType.DATA, length + _PDV.size) + _PDV.pack(length + 2, context, control)
