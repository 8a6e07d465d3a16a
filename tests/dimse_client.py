"""A C-STORE client made of bytes, so that a test can send what no library would send."""

import socket
import struct

from hostile_files import SECONDARY_CAPTURE

EXPLICIT = "1.2.840.10008.1.2.1"
PATIENCE = 30.0
REJECT, DATA, RELEASED, ABORT = 3, 4, 6, 7


def item(kind, value):
    return struct.pack(">BxH", kind, len(value)) + value


def pdu(kind, body):
    return struct.pack(">BxI", kind, len(body)) + body


def associate_request(
    called="STREAMSRV",
    calling="CT1",
    sop_class=SECONDARY_CAPTURE,
    syntax=EXPLICIT,
    window=0,
    others=(),
    user=b"",
):
    """`others` are further contexts (abstract and transfer syntax), `user` is further user information."""
    contexts = b""
    for number, (abstract, transfer) in enumerate([(sop_class, syntax), *others]):
        inner = item(0x30, abstract.encode()) + item(0x40, transfer.encode())
        contexts += item(0x20, bytes((2 * number + 1, 0, 0, 0)) + inner)
    user = item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3") + user
    if window:
        user += item(0x53, struct.pack(">HH", window, 1))
    head = struct.pack(">H2x16s16s32x", 1, called.encode().ljust(16), calling.encode().ljust(16))
    return pdu(1, head + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + item(0x50, user))


def command_set(values):
    """Implicit VR little endian: UIDs and names as text, numbers of 16 bits."""

    def element(tag, value):
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, tag, len(value)) + value

    body = b""
    for tag, value in sorted(values.items()):
        body += element(tag, value.encode() if isinstance(value, str) else struct.pack("<H", value))
    return element(0, struct.pack("<I", len(body))) + body


def store_command(uid, number=1, sop_class=SECONDARY_CAPTURE, field=1):
    numbers = {0x100: field, 0x110: number, 0x700: 0, 0x800: 1}
    return command_set({0x0002: sop_class, 0x1000: uid, **numbers})


def pdv(content, control, context=1):
    return pdu(DATA, struct.pack(">IBB", len(content) + 2, context, control) + content)


def message(uid, dataset, number=1, piece=16000, sop_class=SECONDARY_CAPTURE):
    """The PDUs of a C-STORE-RQ."""
    pieces = [dataset[at : at + piece] for at in range(0, len(dataset), piece)]
    sent = [pdv(store_command(uid, number, sop_class), 3)]
    sent += [pdv(each, 2 * (at == len(pieces) - 1)) for at, each in enumerate(pieces)]
    return b"".join(sent)


class DimseClient:
    def __init__(self, port, **request):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.sendall(associate_request(**request))
        self.answer = self.receive()

    def receive(self):
        """(type, body) of the next PDU; None if the connection has ended."""
        head = self._exactly(6)
        if len(head) < 6:
            return None
        kind, length = struct.unpack(">BxI", head)
        return kind, self._exactly(length)

    def _exactly(self, count):
        received = b""
        while len(received) < count:
            piece = self.socket.recv(count - len(received))
            if not piece:
                break
            received += piece
        return received

    def response(self):
        """(message id, status) of the next response."""
        kind, body = self.receive()
        assert kind == DATA, (kind, body)
        values, at = {}, 6
        while at < len(body):
            _, tag, length = struct.unpack_from("<HHI", body, at)
            values[tag] = body[at + 8 : at + 8 + length]
            at += 8 + length
        return (struct.unpack("<H", values[0x120])[0], struct.unpack("<H", values[0x900])[0])

    def store(self, uid, dataset, number=1, **options):
        """The status."""
        self.socket.sendall(message(uid, dataset, number, **options))
        return self.response()[1]

    def release(self):
        self.socket.sendall(pdu(5, bytes(4)))
        assert self.receive() == (RELEASED, bytes(4))
        self.close()

    def close(self):
        self.socket.close()
