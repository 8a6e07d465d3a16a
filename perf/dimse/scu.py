"""A DIMSE peer: it sends requests, counts responses, and drops the datasets that it gets.

It is written on sockets, because a library that parses each dataset would be measured instead of the server.
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
        self._begin = self._end = 0
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
        command_set, asked = b"", dict[int, bytes]()
        while True:
            kind, body = self._pdu()
            if kind != DATA:
                raise RuntimeError(f"the association has ended: PDU {kind}")
            at = 0
            while at < len(body):
                size, context, control = _PDV.unpack_from(body, at)
                content = body[at + 6 : at + 4 + size]
                at += 4 + size
                if control & 1:
                    command_set += content
                    if control & 2:
                        asked, command_set = _values(command_set), b""
                        if _number(asked, 0x0100) & 0x8000 and _number(asked, 0x0900) & 0xFF00 != PENDING:
                            if _number(asked, 0x0900):
                                raise RuntimeError(f"status {_number(asked, 0x0900):04X}")
                            return number, length
                    continue
                length += len(content)
                if control & 2:
                    number += 1
                    if _number(asked, 0x0100) == C_STORE:
                        self._socket.sendall(_stored(context, asked))

    def _pdu(self) -> tuple[int, memoryview]:
        self._need(6)
        kind, length = _HEAD.unpack_from(self._buffer, self._begin)
        self._need(6 + length)
        start = self._begin + 6
        self._begin += 6 + length
        return kind, memoryview(self._buffer)[start : start + length]

    def _need(self, count: int) -> None:
        if self._begin + count > len(self._buffer):
            rest = self._buffer[self._begin : self._end]
            self._buffer = bytearray(max(BUFFER, 2 * count))
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        while self._end - self._begin < count:
            if self._begin == self._end:
                self._begin = self._end = 0
            got = self._socket.recv_into(memoryview(self._buffer)[self._end :])
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
