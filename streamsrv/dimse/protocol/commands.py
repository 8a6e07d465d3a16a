"""DIMSE command sets (PS3.7 6.3.1, 9.3, Annex E): implicit VR little endian, group 0000. Sans-IO."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from streamsrv.dimse.protocol.pdus import AbortReason, UpperLayerError

LONGEST_COMMAND = 1 << 16  # bytes; those of C-STORE have about 200
NO_DATASET = 0x0101  # of Command Data Set Type (0000,0800)
RESPONSE = 0x8000  # bit of a response in Command Field
LONGEST_COMMENT = 64  # characters of Error Comment, an LO

_ELEMENT = struct.Struct("<HHI")
_SHORT, _GROUP_LENGTH = struct.Struct("<H"), struct.Struct("<HHII")
(
    _SOP_CLASS,
    _FIELD,
    _MESSAGE_ID,
    _RESPONDED_TO,
    _DATASET_TYPE,
    _STATUS,
    _COMMENT,
    _INSTANCE,
) = (0x0002, 0x0100, 0x0110, 0x0120, 0x0800, 0x0900, 0x0902, 0x1000)
_DESTINATION = 0x0600
_REQUESTED_CLASS, _REQUESTED_INSTANCE, _EVENT_TYPE, _ACTION_TYPE = 0x0003, 0x1001, 0x1002, 0x1008
_PRIORITY, _FIRST_NUMBER, _MOVE_TITLE, _MOVE_MESSAGE_ID = 0x0700, 0x1020, 0x1030, 0x1031
_ZERO = bytes(2)
_NO_LO = re.compile(r"[^ -\[\]-~]")


class CommandField(IntEnum):
    """Requests (PS3.7 Table E.1-1)."""

    C_STORE = 0x0001
    C_GET = 0x0010
    C_FIND = 0x0020
    C_MOVE = 0x0021
    C_ECHO = 0x0030
    N_EVENT_REPORT = 0x0100
    N_ACTION = 0x0130
    C_CANCEL = 0x0FFF


class DimseStatus(IntEnum):
    """PS3.7 Annex C, PS3.4 Table B.2-1."""

    SUCCESS = 0x0000
    WITH_FAILURES = 0xB000  # of sub-operations
    DUPLICATE = 0x0111
    NO_SUCH_INSTANCE = 0x0112
    INVALID_ARGUMENT = 0x0115
    INVALID_INSTANCE = 0x0117
    CLASS_NOT_SUPPORTED = 0x0122
    NO_SUCH_ACTION = 0x0123
    NOT_AUTHORIZED = 0x0124
    UNRECOGNIZED_OPERATION = 0x0211
    MISTYPED_ARGUMENT = 0x0212
    RESOURCE_LIMITATION = 0x0213
    OUT_OF_RESOURCES = 0xA700
    SUB_OPERATIONS_FAILED = 0xA702  # all of them
    DESTINATION_UNKNOWN = 0xA801
    MISMATCH = 0xA900  # of dataset and SOP class; of C-STORE also of dataset and command
    CANNOT_UNDERSTAND = 0xC000
    CANCEL = 0xFE00
    PENDING = 0xFF00
    PENDING_WITHOUT_OPTIONAL_KEYS = 0xFF01


class Command(NamedTuple):
    """A command set as received. `field` is a number, because a peer may send any. `responded_to` is the
    message id of the request that a response or C-CANCEL names, and `status` is that of a response.
    `destination` is that of a C-MOVE, `type_id` the Action Type ID of an N-ACTION. SOP class and instance are
    the affected ones, else the requested ones."""

    field: int
    message_id: int
    sop_class: str
    instance: str
    has_dataset: bool
    responded_to: int = 0
    status: int = 0
    destination: str = ""
    type_id: int = 0


def command_of(content: bytes) -> Command:
    """Raises UpperLayerError."""
    values: dict[int, bytes] = {}
    at = 0
    while at < len(content):
        if len(content) - at < _ELEMENT.size:
            raise _malformed("it ends in an element")
        group, element, length = _ELEMENT.unpack_from(content, at)
        at += _ELEMENT.size
        if group != 0 or at + length > len(content):
            raise _malformed(f"element ({group:04X},{element:04X}) of {length} bytes")
        values[element] = content[at : at + length]
        at += length
    return Command(
        _number(values, _FIELD),
        _number(values, _MESSAGE_ID, 0),
        _text(values, _SOP_CLASS) or _text(values, _REQUESTED_CLASS),
        _text(values, _INSTANCE) or _text(values, _REQUESTED_INSTANCE),
        _number(values, _DATASET_TYPE) != NO_DATASET,
        _number(values, _RESPONDED_TO, 0),
        _number(values, _STATUS, 0),
        _text(values, _DESTINATION),
        _number(values, _ACTION_TYPE, 0),
    )


def _malformed(what: str) -> UpperLayerError:
    return UpperLayerError(f"a malformed command set: {what}", AbortReason.NOT_SPECIFIED)


def _number(values: dict[int, bytes], element: int, default: int | None = None) -> int:
    value = values.get(element)
    if value is None and default is not None:
        return default
    if value is None or len(value) != 2:
        raise _malformed(f"(0000,{element:04X}) is missing or has no two bytes")
    return int.from_bytes(value, "little")


def _text(values: dict[int, bytes], element: int) -> str:
    return values.get(element, b"").decode("ascii", "replace").strip(" \0")


def response(
    command: Command,
    status: int,
    comment: str = "",
    *,
    has_dataset: bool = False,
    numbers: Sequence[int] = (),
) -> bytes:
    """The command set of the response. `comment` is cut. `numbers` are those of remaining (-1: none),
    completed, failed and warning sub-operations."""
    body = b"".join(
        (
            _element(_SOP_CLASS, _padded(command.sop_class, b"\0")) if command.sop_class else b"",
            _element(_FIELD, struct.pack("<H", command.field | RESPONSE)),
            _element(_RESPONDED_TO, struct.pack("<H", command.message_id)),
            _element(_DATASET_TYPE, struct.pack("<H", 0 if has_dataset else NO_DATASET)),
            _element(_STATUS, struct.pack("<H", status)),
            _element(_COMMENT, _padded(_comment(comment), b" ")) if comment else b"",
            _element(_INSTANCE, _padded(command.instance, b"\0")) if command.instance else b"",
            *(
                _element(_FIRST_NUMBER + at, struct.pack("<H", min(number, 0xFFFF)))
                for at, number in enumerate(numbers)
                if number >= 0
            ),
        )
    )
    return _element(0x0000, struct.pack("<I", len(body))) + body


def store_request(
    message_id: int, sop_class: str, instance: str, originator: tuple[str, int] | None
) -> bytes:
    """The command set of a C-STORE-RQ. `originator` are AE title and message id of a C-MOVE
    (PS3.7 9.3.1)."""
    before, between, behind = _store_request(sop_class, originator)
    body = before + _SHORT.pack(message_id) + between + _element(_INSTANCE, _padded(instance, b"\0")) + behind
    return _GROUP_LENGTH.pack(0, 0, 4, len(body)) + body


@lru_cache(maxsize=256)
def _store_request(sop_class: str, originator: tuple[str, int] | None) -> tuple[bytes, bytes, bytes]:
    """The bytes around message id and instance, which are the same for many instances."""
    before = _element(_SOP_CLASS, _padded(sop_class, b"\0"))
    before += _element(_FIELD, _SHORT.pack(CommandField.C_STORE)) + _ELEMENT.pack(0, _MESSAGE_ID, 2)
    between, behind = _element(_PRIORITY, _ZERO) + _element(_DATASET_TYPE, _ZERO), b""
    if originator is not None:
        behind = _element(_MOVE_TITLE, _padded(originator[0], b" "))
        behind += _element(_MOVE_MESSAGE_ID, _SHORT.pack(originator[1]))
    return before, between, behind


def event_report_request(message_id: int, sop_class: str, instance: str, event: int) -> bytes:
    """The command set of an N-EVENT-REPORT-RQ (PS3.7 10.3.1)."""
    return _command_set(
        {
            _SOP_CLASS: _padded(sop_class, b"\0"),
            _FIELD: struct.pack("<H", CommandField.N_EVENT_REPORT),
            _MESSAGE_ID: struct.pack("<H", message_id),
            _DATASET_TYPE: b"\0\0",
            _INSTANCE: _padded(instance, b"\0"),
            _EVENT_TYPE: struct.pack("<H", event),
        }
    )


def _command_set(values: dict[int, bytes]) -> bytes:
    body = b"".join(_element(tag, values[tag]) for tag in sorted(values))
    return _element(0x0000, struct.pack("<I", len(body))) + body


def _comment(text: str) -> str:
    return _NO_LO.sub("?", text)[:LONGEST_COMMENT].strip()


def _padded(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)


def _element(element: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, element, len(value)) + value
