"""A DIMSE peer: it sends requests, counts responses, and drops the datasets that it gets.

It is written on sockets, because a library that parses each dataset would be measured instead of the server.
The bytes of instances are discarded in the kernel, as those of HTTP are (perf/clients.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from streamsrv.dimse.protocol.pdus import (
    ProposedContext,
    associate_accepted,
    associate_rq,
    data_pdus,
)

LONGEST = 131_072
BUFFER = 1 << 20
HEADS = 1 << 10  # bytes that are received at a time where instances come: a command set and some heads
PENDING = 0xFF00
IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.77.1", "PERF"
_HEAD, _PDV, _ELEMENT = struct.Struct(">BxI"), struct.Struct(">IBB"), struct.Struct("<HHI")
DATA = 4
C_FIND, C_GET, C_STORE = 0x20, 0x10, 0x01


class Scu:
    """One association, with one presentation context for each class. `receives` are storage classes."""

    def __init__(self, port: int, sop_class: str, syntax: str, receives: Sequence[str] = ()) -> None:
        self._class = sop_class
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(BUFFER)
        self._sink = bytearray(LONGEST)
        self._begin = self._end = 0
        self._at_once = HEADS if receives else BUFFER
        classes = [sop_class, *receives]
        contexts = [ProposedContext(2 * at + 1, uid, (syntax,)) for at, uid in enumerate(classes)]
        roles = [(uid, 1, 1) for uid in receives]
        titles = "STREAMSRV", "PERF"
        self._socket.sendall(
            associate_rq(*titles, contexts, longest=LONGEST, implementation=IMPLEMENTATION, roles=roles)
        )
        kind, body = self._pdu()
        if kind != 2 or any(result for _, result, _ in associate_accepted(body).contexts):
            raise RuntimeError(f"no association: PDU {kind}")

    def request(self, field: int, identifier: bytes) -> tuple[int, int]:
        """Sends a request. Returns the number of responses or sub-operations, and the bytes of datasets."""
        command = _command({0x0002: self._class, 0x0100: field, 0x0110: 1, 0x0700: 0, 0x0800: 1})
        sent = b"".join(
            (*data_pdus(1, command, LONGEST, is_command=True), *data_pdus(1, identifier, LONGEST))
        )
        self._socket.sendall(sent)
        number = length = 0
        command_set, response, asked = b"", b"", dict[int, bytes]()
        while True:
            self._need(6 + _PDV.size)
            kind, left = _HEAD.unpack_from(self._buffer, self._begin)
            if kind != DATA:
                raise RuntimeError(f"the association has ended: PDU {kind}")
            self._begin += 6
            while left:
                self._need(_PDV.size)
                size, context, control = _PDV.unpack_from(self._buffer, self._begin)
                self._begin += _PDV.size
                left, size = left - 4 - size, size - 2
                if control & 1:
                    command_set += self._taken(size)
                    if control & 2:
                        asked, command_set = _values(command_set), b""
                        if _number(asked, 0x0100) & 0x8000 and _number(asked, 0x0900) & 0xFF00 != PENDING:
                            if _number(asked, 0x0900):
                                raise RuntimeError(f"status {_number(asked, 0x0900):04X}")
                            return number, length
                        if _number(asked, 0x0100) == C_STORE:
                            response = _stored(context, asked)
                    continue
                self._drop(size)
                length += size
                if control & 2:
                    number += 1
                    if response:
                        self._socket.sendall(response)

    def _pdu(self) -> tuple[int, memoryview]:
        self._need(6)
        kind, length = _HEAD.unpack_from(self._buffer, self._begin)
        self._need(6 + length)
        start = self._begin + 6
        self._begin += 6 + length
        return kind, memoryview(self._buffer)[start : start + length]

    def _taken(self, size: int) -> memoryview:
        self._need(size)
        self._begin += size
        return memoryview(self._buffer)[self._begin - size : self._begin]

    def _drop(self, size: int) -> None:
        there = min(size, self._end - self._begin)
        self._begin += there
        left = size - there
        while left:
            got = self._socket.recv_into(self._sink, left, socket.MSG_TRUNC | socket.MSG_WAITALL)
            if not got:
                raise RuntimeError("the connection is closed")
            left -= got

    def _need(self, count: int) -> None:
        if self._begin + count > len(self._buffer):
            rest = self._buffer[self._begin : self._end]
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        while self._end - self._begin < count:
            if self._begin == self._end:
                self._begin = self._end = 0
            room = len(self._buffer) - self._end
            got = self._socket.recv_into(memoryview(self._buffer)[self._end :], min(room, self._at_once))
            if not got:
                raise RuntimeError("the connection is closed")
            self._end += got

    def __enter__(self) -> Scu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._socket.sendall(_HEAD.pack(5, 4) + bytes(4))
            self._pdu()
        self._socket.close()


def _stored(context: int, asked: dict[int, bytes]) -> bytes:
    """The response to a C-STORE."""
    numbers = {0x0100: 0x8001, 0x0120: _number(asked, 0x0110), 0x0800: 0x0101, 0x0900: 0}
    command = _command({0x0002: _text(asked, 2), 0x1000: _text(asked, 0x1000), **numbers})
    return b"".join(data_pdus(context, command, LONGEST, is_command=True))


def _command(values: dict[int, str | int]) -> bytes:
    body = b""
    for tag, value in sorted(values.items()):
        content = struct.pack("<H", value) if isinstance(value, int) else value.encode()
        content += b"\0" * (len(content) % 2)
        body += _ELEMENT.pack(0, tag, len(content)) + content
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<I", len(body)) + body


def _values(command: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at < len(command):
        _, tag, length = _ELEMENT.unpack_from(command, at)
        found[tag] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _number(values: dict[int, bytes], tag: int) -> int:
    return int.from_bytes(values.get(tag, b""), "little")


def _text(values: dict[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode().strip("\0 ")


def identifier(values: dict[tuple[int, int], tuple[str, str]]) -> bytes:
    """A dataset in Explicit VR Little Endian of elements with short lengths."""
    pieces = []
    for tag, (vr, value) in sorted(values.items()):
        content = value.encode()
        content += (b"\0" if vr == "UI" else b" ") * (len(content) % 2)
        pieces.append(struct.pack("<HH2sH", *tag, vr.encode(), len(content)) + content)
    return b"".join(pieces)
