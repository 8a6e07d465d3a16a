"""A dataset in Implicit VR Little Endian, made of one in Explicit VR Little Endian while that is made
(PS3.5 7.1.3, A.1).

Rule: the input comes from explicit.py. Its sequences and items have undefined length, and a value of UN has
its length. So each element is converted by its header alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from streamsrv.dicom.elements import SHORT_VRS, UNDEFINED

_HEAD = struct.Struct("<HH2sH")
_LONG = struct.Struct("<I")
_IMPLICIT = struct.Struct("<HHI").pack
_DELIMITERS = 0xFFFE
LONGEST_HEAD = 12


def implicit_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of a dataset in Implicit VR Little Endian. Values are passed on as they come."""
    waiting, value = b"", 0  # bytes of a header, and those of the value that are still to come
    for chunk in chunks:
        data, at, out = waiting + chunk, 0, list[bytes]()
        while at < len(data):
            if value:
                piece = data[at : at + value]
                out.append(piece)
                at += len(piece)
                value -= len(piece)
                continue
            head = _converted(data[at : at + LONGEST_HEAD])
            if head is None:
                break
            converted, size, value = head
            out.append(converted)
            at += size
        waiting = data[at:]
        if out:
            yield b"".join(out)
    if waiting or value:
        raise ValueError("a dataset ends within an element")


def _converted(head: bytes) -> tuple[bytes, int, int] | None:
    """The header, its size in the input and the length of the value; None if it is not whole."""
    if len(head) < 8:
        return None
    group, element, vr, length = _HEAD.unpack_from(head)
    if group == _DELIMITERS:
        return head[:8], 8, 0
    if vr in SHORT_VRS:
        return _IMPLICIT(group, element, length), 8, length
    if len(head) < LONGEST_HEAD:
        return None
    (length,) = _LONG.unpack_from(head, 8)
    return _IMPLICIT(group, element, length), LONGEST_HEAD, 0 if length == UNDEFINED else length
