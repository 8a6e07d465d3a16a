"""Items of encapsulated Pixel Data, found by their headers alone (PS3.5 A.4).

Strategy: item headers are read, item values are jumped over. Where items are small a window of 256 kB shows
many headers at once; where they are large one short read each is cheaper than copying them. Offsets and
lengths go into packed arrays: 16 bytes an item.

Rules: an item that does not fit before `end`, a tag that is neither item nor sequence delimiter, a missing
delimiter: NotDicom.
"""

from __future__ import annotations

from array import array
from struct import Struct

from streamsrv.dicom.window import Pread
from streamsrv.errors import InstanceRefused, NotDicom

ITEM = 0xE000FFFE  # the tags as one little-endian 32-bit word
SEQUENCE_END = 0xE0DDFFFE
_BIG_ITEM = 0xFFFEE000
_BIG_SEQUENCE_END = 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF

HEADER = Struct("<II")  # tag, length
_LITTLE = HEADER.unpack_from
_BIG = Struct(">II").unpack_from
_WINDOW = 256 * 1024
_SHORT = 64
_SMALL_ITEM = 4096  # below, a window is cheaper than a read for each header


class Items:
    """The items from one offset to the sequence delimiter: `offsets` and `lengths` of their values, `end`
    where the delimiter begins."""

    __slots__ = ("end", "lengths", "offsets")

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.lengths = array("Q")
        self.end = 0


def scan_items(pread: Pread, start: int, end: int, limit: int, *, little: bool = True) -> Items:
    """All items from `start`; `end` is where their parent ends. The loop is one because it runs once an
    item."""
    items = Items()
    offsets, lengths = items.offsets.append, items.lengths.append
    unpack, item, last = (_LITTLE, ITEM, SEQUENCE_END) if little else (_BIG, _BIG_ITEM, _BIG_SEQUENCE_END)
    buffer, base, position, length = b"", start, start, 0
    while True:
        at = position - base
        if at + 8 > len(buffer):
            step = _WINDOW if length < _SMALL_ITEM else _SHORT
            buffer, base, at = pread(position, max(0, min(step, end - position))), position, 0
            if len(buffer) < 8:
                raise NotDicom("encapsulated Pixel Data end without a sequence delimiter", offset=position)
            if len(items.offsets) > limit:
                raise InstanceRefused(f"more than {limit:,} fragments", offset=position)
        tag, length = unpack(buffer, at)
        if tag == last:
            break
        if tag != item or length == UNDEFINED:
            raise NotDicom("expected a fragment of encapsulated Pixel Data", offset=position)
        position += 8
        if length > end - position:
            raise NotDicom("a fragment is longer than what holds it", offset=position - 8)
        offsets(position)
        lengths(length)
        position += length
    items.end = position
    return items


def fragment_spans(pread: Pread, offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, length) of each fragment of a frame whose table entry is FRAGMENTED; `length` may still carry
    that flag."""
    spans = []
    end = offset + (length & ~(1 << 63))
    while offset < end:
        head = pread(offset, 8)
        if len(head) < 8:
            raise NotDicom("a fragment is truncated", offset=offset)
        tag, size = _LITTLE(head)
        if tag != ITEM or offset + 8 + size > end:
            raise NotDicom("expected a fragment of encapsulated Pixel Data", offset=offset)
        spans.append((offset + 8, size))
        offset += 8 + size
    return spans
