"""A Part 10 file of which more is still to come: what its next bytes belong to.

A long value is all that its bytes are good for: the reader jumps over it. Of fragments he reads the item
headers, which lie all over it (PS3.5 A.4); they are picked up here while they pass, so that nobody has to
fetch them from the disk again.

Rule: what cannot be told is nobody's. Whether the file is sound shows when it is whole; nothing is concluded
here that the reader does not see for himself.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import replace
from typing import Protocol

from streamsrv.dicom import tags
from streamsrv.dicom.elements import Elements
from streamsrv.dicom.filemeta import encoding_of, read_file_meta
from streamsrv.dicom.frames import HEADER, ITEM, UNDEFINED, scan_items
from streamsrv.dicom.window import UNKNOWN_END, Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError

# A header with more elements is not worth reading twice: so many take about a tenth of a second.
MOST_ELEMENTS = 100_000

_PIXEL_DATA = int(tags.PIXEL_DATA, 16)


class Arriving(Protocol):
    """What a long value is made of. Offsets count from the start of the Part 10 file."""

    def take(self, view: bytes | memoryview, offset: int) -> None:
        """The next bytes of the file, which lie at `offset`."""

    def holds(self, end: int) -> bool:
        """Whether all before `end` that has not been taken yet, or was taken last, is of this value."""

    def reading(self, pread: Pread) -> Pread:
        """`pread` of the file; where an item's header is known, that header alone, which is all that anybody
        wants who reads from there on."""


class Value:
    """One of defined length, which ends at `end`: native Pixel Data, mostly."""

    def __init__(self, end: int) -> None:
        self._end = end

    def take(self, view: bytes | memoryview, offset: int) -> None: ...

    def holds(self, end: int) -> bool:
        return end <= self._end

    def reading(self, pread: Pread) -> Pread:
        return pread


class Fragments:
    """Items from `start` on: 16 bytes are kept of each, of at most `most`."""

    def __init__(self, start: int, most: int) -> None:
        self._next = start  # where the next header begins
        self._head = b""  # what has come of it, if the rest has not
        self._most = most
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._ended = False

    def catch_up(self, pread: Pread, received: int) -> None:
        """With what came before `received`."""
        while not self._ended and self._next + HEADER.size <= received:
            self._item(*HEADER.unpack(pread(self._next, HEADER.size)))
        if not self._ended and self._next < received:
            self._head = pread(self._next, received - self._next)

    def take(self, view: bytes | memoryview, offset: int) -> None:
        end = offset + len(view)
        while not self._ended and self._next < end:
            at = self._next - offset
            if at >= 0 and at + HEADER.size <= len(view):
                self._item(*HEADER.unpack_from(view, at))
                continue
            self._head += view[max(0, at) : at + HEADER.size]
            if len(self._head) < HEADER.size:
                return
            head, self._head = self._head, b""
            self._item(*HEADER.unpack(head))

    def _item(self, tag: int, length: int) -> None:
        if tag != ITEM or length == UNDEFINED or len(self._offsets) >= self._most:
            self._ended = True
            return
        self._offsets.append(self._next)
        self._lengths.append(length)
        self._next += HEADER.size + length

    def holds(self, end: int) -> bool:
        return not self._ended

    def reading(self, pread: Pread) -> Pread:
        offsets, lengths = self._offsets, self._lengths

        def known(offset: int, length: int) -> bytes:
            place = bisect_left(offsets, offset)
            if place < len(offsets) and offsets[place] == offset:
                return HEADER.pack(ITEM, lengths[place])[:length]
            return pread(offset, length)

        return known


class _UnderWay(Exception):
    """Pixel Data in fragments have begun."""

    def __init__(self, start: int, little: bool) -> None:
        self.start = start
        self.little = little


def what_arrives(pread: Pread, received: int, limits: ReadLimits) -> Arriving | None:
    """The long value whose first bytes are among the `received` ones that `pread` reads, and whose last are
    not. None if there is none, or if it cannot be told: a deflated dataset, one with very many elements, or
    no DICOM at all."""
    window = ReadWindow(pread, received)
    try:
        meta = read_file_meta(window, received, limits)
        encoding = encoding_of(meta, window)
        if encoding.deflated:
            return None

        def skip_fragments(tag: int, start: int, end: int, little: bool) -> int:
            if tag == _PIXEL_DATA and len(elements.levels) == 1:
                raise _UnderWay(start, little)
            return scan_items(pread, start, min(end, received), limits.max_fragments, little=little).end

        elements = Elements(
            window,
            meta.end,
            UNKNOWN_END,
            explicit=encoding.explicit,
            little=encoding.little,
            limits=replace(limits, max_elements=min(limits.max_elements, MOST_ELEMENTS)),
            skip_fragments=skip_fragments,
        )
        for _, vr, offset, length, value in elements.walk():
            if value is None and vr != "SQ" and len(elements.levels) == 1 and offset + length > received:
                return Value(offset + length)
    except InstanceError:
        return None
    except _UnderWay as pixels:
        if not pixels.little:
            return None
        fragments = Fragments(pixels.start, limits.max_fragments)
        fragments.catch_up(pread, received)
        return fragments if fragments.holds(received) else None
    return None
