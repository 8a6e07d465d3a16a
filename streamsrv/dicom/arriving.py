"""Finds the element to which the next bytes of an arriving Part 10 file belong.

A reader of the whole file skips a long value. But it reads the item headers of fragments, which are
spread over the whole value (PS3.5 A.4). `ArrivingFragments` copies these headers while the bytes pass, so
that nothing has to be read again from the disk.

Rules:
- If the result is uncertain, there is none.
- It decides nothing about the file. Whether the file is valid shows the reader of the whole file.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import replace

from streamsrv.dicom import tags
from streamsrv.dicom.elements import Elements
from streamsrv.dicom.frames import HEADER, ITEM, UNDEFINED, scan_items
from streamsrv.dicom.part10 import encoding_of, read_file_meta
from streamsrv.dicom.window import UNKNOWN_END, Pread, ReadLimits, ReadWindow
from streamsrv.errors import InstanceError

# Reading a header takes about 0.1 s for so many elements. A longer one is not read twice.
MOST_ELEMENTS = 100_000

_PIXEL_DATA = int(tags.PIXEL_DATA, 16)


class ArrivingValue:
    """A long value of defined length, mostly native Pixel Data, which ends at `end`. Offsets count from
    the start of the Part 10 file."""

    def __init__(self, end: int) -> None:
        self._end = end

    def take(self, view: bytes | memoryview, offset: int) -> None:
        """Takes the next bytes of the file, which lie at `offset`."""

    def holds(self, end: int) -> bool:
        """Returns whether all bytes up to `end` from the last ones taken belong to this value."""
        return end <= self._end

    def reading(self, pread: Pread) -> Pread:
        """Returns a `pread` of the file that answers from memory at the offset of a known item header. It
        then returns the header only, which is all that a reader of items needs."""
        return pread


class ArrivingFragments(ArrivingValue):
    """Items from `start` on. It keeps 16 bytes of each, and at most `most` items."""

    def __init__(self, start: int, most: int) -> None:
        self._next = start  # where the next header begins
        self._head = b""  # the part of it that has arrived
        self._most = most
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._ended = False

    def catch_up(self, pread: Pread, received: int) -> None:
        """Reads the headers before `received` with `pread`."""
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


class _FragmentsFound(Exception):
    """The reader has reached Pixel Data in fragments."""

    def __init__(self, start: int, little: bool) -> None:
        self.start = start
        self.little = little


def arriving_value(pread: Pread, received: int, limits: ReadLimits) -> ArrivingValue | None:
    """The long value that begins in the first `received` bytes and ends behind them.

    Returns None if there is none or if it is uncertain: the dataset is deflated, has too many elements,
    or is no DICOM.
    """
    window = ReadWindow(pread, received)
    try:
        meta = read_file_meta(window, received, limits)
        encoding = encoding_of(meta, window)
        if encoding.deflated:
            return None

        def skip_fragments(tag: int, start: int, end: int, little: bool) -> int:
            if tag == _PIXEL_DATA and len(elements.levels) == 1:
                raise _FragmentsFound(start, little)
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
        for _, vr, offset, length, value in elements.events():
            if value is None and vr != "SQ" and len(elements.levels) == 1 and offset + length > received:
                return ArrivingValue(offset + length)
    except InstanceError:
        return None
    except _FragmentsFound as pixels:
        if not pixels.little:
            return None
        fragments = ArrivingFragments(pixels.start, limits.max_fragments)
        fragments.catch_up(pread, received)
        return fragments if fragments.holds(received) else None
    return None
