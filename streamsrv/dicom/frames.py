"""Finds the frames of an instance (PS3.5 8.1 native, A.4 encapsulated; offset tables PS3.3 C.7.6.3.1.8).

Native frames are arithmetic. Encapsulated ones need a table of (offset, length):
1. extended offset table, 2. basic offset table, each only if it agrees with a sample of the item headers: a
  table of 100,000 frames then costs about a millisecond;
3. else all item headers are read. The basic table divides the items into frames if its entries are items;
  otherwise their count does, or the end marker of the JPEG family.

The sample has all frames of a small table. Of a larger one it has the largest frames, because an encoder may
split frames by size. It also has some evenly spaced frames, for an encoder that splits every frame. The last
frame is always in the sample, and the sequence delimiter must follow it.

Rules:
- There are never more frames than NumberOfFrames, and only whole ones.
- `scan_items` reads item headers and skips item values: small items by windows of 256 kB, large ones by
  one short read each. It keeps 16 bytes an item. An item that does not fit before `end`, another tag, or
  a missing delimiter raises NotDicom.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from streamsrv.dicom.instance import FRAGMENTED, FrameKind, FrameLayout
from streamsrv.dicom.window import Pread
from streamsrv.errors import InstanceRefused, NotDicom

Numbers = NDArray[np.uint64]

_ALL = 1024  # up to so many frames all item headers are checked
_LARGEST = 16
_SPACED = 48
_HALF_SAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")
_END_MARKER = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000
_TAIL = 10  # bytes; padding may follow the marker

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
_SMALL_ITEM = 4096  # bytes; below, a window is cheaper than one read for each header


@dataclass(slots=True)
class Geometry:
    """Attributes of the image. `number` is NumberOfFrames; None if it is missing or not positive."""

    rows: int = 0
    columns: int = 0
    samples_per_pixel: int = 1
    bits_allocated: int = 0
    photometric: str = ""
    number: int | None = None


def native_frame_bits(geometry: Geometry) -> int:
    """Bits of one uncompressed frame. Native YBR_FULL_422 shares chrominance: two samples a pixel (PS3.3
    C.7.6.3.1.2)."""
    samples = geometry.samples_per_pixel
    if geometry.photometric in _HALF_SAMPLED and samples == 3:
        samples = 2
    return geometry.rows * geometry.columns * samples * geometry.bits_allocated


def native_frames(geometry: Geometry, offset: int, length: int) -> FrameLayout:
    """Frames of native Pixel Data. A padding byte at the end belongs to no frame."""
    bits = native_frame_bits(geometry)
    number = min(geometry.number or 1, length * 8 // bits) if bits else 0
    if not number:
        return FrameLayout(FrameKind.EMPTY)
    if bits % 8:
        return FrameLayout(FrameKind.BITS, number, offset, bits)
    return FrameLayout(FrameKind.NATIVE, number, offset, bits // 8)


def whole_value(offset: int, length: int) -> FrameLayout:
    """One frame, which is the whole value: compressed Pixel Data without fragments."""
    return FrameLayout(FrameKind.TABLE, 1, table=np.array([offset, length], "<u8").tobytes())


@dataclass(slots=True)
class Encapsulated:
    """Encapsulated Pixel Data. `start` is the offset of its first item, `end` the end of its parent.

    `single`: all fragments are one stream (video). `extended`: raw values of the extended offset table
    and of its lengths. `seekable`: reading backward is cheap, so a sample is enough to accept a table.
    """

    pread: Pread
    start: int
    end: int
    number: int | None
    limit: int
    single: bool = False
    extended: tuple[bytes, bytes] | None = None
    seekable: bool = True
    little: bool = True

    def layout(self) -> tuple[FrameLayout, int]:
        """Returns the frames and the offset of the sequence delimiter. Raises NotDicom and
        InstanceRefused."""
        if not self.little:  # fragments are always little endian (A.4), so these have no frames
            items = scan_items(self.pread, self.start, self.end, self.limit, little=False)
            return FrameLayout(FrameKind.EMPTY), items.end
        size = self._length_at(self.start)
        if size is None or size > min(self.end - self.start - 8, 4 * self.limit):
            return self._scan(self.start, np.empty(0, np.uint64))
        value = self.pread(self.start + 8, size)
        basic = np.frombuffer(value, "<u4", len(value) // 4).astype(np.uint64)
        first = self.start + 8 + size
        if self.seekable and not self.single:
            found = self._by_extended(first) or self._by_basic(first, basic)
            if found is not None:
                return found
        return self._scan(first, basic)

    def _by_extended(self, first: int) -> tuple[FrameLayout, int] | None:
        if self.extended is None or not self.extended[0] or len(self.extended[0]) != len(self.extended[1]):
            return None
        if len(self.extended[0]) % 8:
            return None
        offsets, lengths = (np.frombuffer(value, "<u8") for value in self.extended)
        room = self.end - first
        if int(offsets.max()) > room or int(lengths.max()) > room:
            return None
        starts = offsets + np.uint64(first)
        ends = starts + lengths + np.uint64(8)
        if (ends[:-1] > starts[1:]).any():
            return None
        # A fragment has even length. The table may count it without the padding byte.
        return self._believed(starts, lengths, slack=1)

    def _by_basic(self, first: int, offsets: Numbers) -> tuple[FrameLayout, int] | None:
        if not len(offsets) or offsets[0] or (offsets[1:] < offsets[:-1] + np.uint64(8)).any():
            return None
        starts = offsets + np.uint64(first)
        if int(starts[-1]) + 8 > self.end:
            return None
        lengths = np.empty(len(starts), np.uint64)
        lengths[:-1] = np.diff(starts) - np.uint64(8)
        lengths[-1] = self._length_at(int(starts[-1])) or 0
        return self._believed(starts, lengths, slack=0)

    def _length_at(self, position: int) -> int | None:
        """The length of the item at `position`; None if there is no item."""
        head = self.pread(position, 8)
        tag, length = HEADER.unpack(head) if len(head) == 8 else (0, 0)
        return length if tag == ITEM else None

    def _believed(self, starts: Numbers, lengths: Numbers, slack: int) -> tuple[FrameLayout, int] | None:
        """The frames of the table, if a sample of item headers agrees and the delimiter follows the
        last."""
        for place in _sample(lengths):
            found = self._length_at(int(starts[place]))
            if found is None or not 0 <= found - int(lengths[place]) <= slack:
                return None
        try:
            tail = scan_items(self.pread, int(starts[-1]), self.end, self.limit)
        except NotDicom:
            return None
        if len(tail.offsets) != 1:
            return None
        return self._table(starts + np.uint64(8), lengths), tail.end

    def _table(self, offsets: Numbers, lengths: Numbers) -> FrameLayout:
        number = min(len(offsets), self.number or len(offsets))
        table = np.empty((number, 2), "<u8")
        table[:, 0] = offsets[:number]
        table[:, 1] = lengths[:number]
        return FrameLayout(FrameKind.TABLE if number else FrameKind.EMPTY, number, table=table.tobytes())

    def _scan(self, first: int, basic: Numbers) -> tuple[FrameLayout, int]:
        """Reads all item headers. The frames are groups of fragments."""
        items = scan_items(self.pread, first, self.end, self.limit)
        offsets = np.array(items.offsets, np.uint64)
        lengths = np.array(items.lengths, np.uint64)
        if not len(offsets):
            return FrameLayout(FrameKind.EMPTY), items.end
        begins = self._frame_begins(first, basic, items, offsets)
        return self._grouped(begins, offsets, lengths), items.end

    def _frame_begins(self, first: int, basic: Numbers, items: Items, offsets: Numbers) -> NDArray[np.int64]:
        """Index of the first fragment of each frame."""
        count = len(offsets)
        number = self.number
        if self.single:
            return np.zeros(1, np.int64)
        if len(basic) and not basic[0]:
            begins = np.searchsorted(offsets, basic + np.uint64(first + 8))
            if (
                begins[-1] < count
                and (offsets[begins] == basic + np.uint64(first + 8)).all()
                and (np.diff(begins) > 0).all()
            ):
                return begins
        if number is None or number == 1:
            return np.zeros(1, np.int64)
        if count <= number:
            return np.arange(count)
        return self._by_marker(items)

    def _by_marker(self, items: Items) -> NDArray[np.int64]:
        """A frame ends with a fragment that has the end marker."""
        ended = [
            _END_MARKER in self.pread(offset + max(0, length - _TAIL), min(length, _TAIL))
            for offset, length in zip(items.offsets, items.lengths, strict=True)
        ]
        if not any(ended):
            return np.arange(len(ended))  # RLE: a fragment is a frame
        return np.array([0, *(place + 1 for place, last in enumerate(ended[:-1]) if last)])

    def _grouped(self, begins: NDArray[np.int64], offsets: Numbers, lengths: Numbers) -> FrameLayout:
        """One entry a frame: its only fragment, or the range of its fragments with their item headers."""
        last = np.append(begins[1:], len(offsets)) - 1
        several = last > begins
        starts = np.where(several, offsets[begins] - np.uint64(8), offsets[begins])
        ranges = offsets[last] + lengths[last] - starts
        return self._table(starts, np.where(several, ranges | np.uint64(FRAGMENTED), ranges))


def _sample(lengths: Numbers) -> list[int]:
    count = len(lengths)
    if count <= _ALL:
        return list(range(count))
    largest = np.argpartition(lengths, count - _LARGEST)[-_LARGEST:]
    spaced = np.linspace(0, count - 1, _SPACED).astype(np.int64)
    return [int(place) for place in np.concatenate((largest, spaced))]


# Items (PS3.5 A.4)


class Items:
    """`offsets` and `lengths` of the values of items. `end` is the offset of the sequence delimiter."""

    __slots__ = ("end", "lengths", "offsets")

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.lengths = array("Q")
        self.end = 0


def scan_items(pread: Pread, start: int, end: int, limit: int, *, little: bool = True) -> Items:
    """Reads the headers of all items from `start` on, in a parent that ends at `end`. Raises NotDicom, and
    InstanceRefused for more than `limit` items. One loop, because it runs for every item."""
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
            raise NotDicom("a fragment is longer than its container", offset=position - 8)
        offsets(position)
        lengths(length)
        position += length
    items.end = position
    return items


def fragment_spans(pread: Pread, offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, length) of each fragment of a frame whose table entry is FRAGMENTED. `length` may have that
    flag. Raises NotDicom."""
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
