"""Reading a Part 10 file through a window: the bytes around the reading position, and no more of the file
than that.

Strategy: the readers above unpack straight from `ReadWindow.buffer` and come back when it is used up. The
first window is small (most headers end within it), then windows double up to 256 kB; a jump over a value
starts small again, so that a file of any size costs its headers and nothing else. `Inflater` makes the
dataset of the deflated transfer syntaxes (PS3.5 A.5) readable by the same calls: offsets count from the
start of the inflated dataset, reading forward costs one pass, reading backward starts over.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from streamsrv.errors import InstanceRefused, NotDicom

# (offset, length) -> bytes of the Part 10 file; fewer only at its end.
Pread = Callable[[int, int], bytes]

# Stands for "the end is not known yet": beyond any file.
UNKNOWN_END = 1 << 62

_SMALLEST = 16 * 1024
_LARGEST = 256 * 1024


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What one instance may cost. Over a limit it is refused (InstanceRefused), except depth: no instance
    nests so deep (NotDicom)."""

    bulk_threshold: int = (
        1024  # longer values of OB OD OF OL OV OW UN are fetched by BulkDataURI: metadata stay light
    )
    text_threshold: int = (
        64 * 1024
    )  # the same for all other VRs: what 16-bit lengths can hold stays in the metadata
    max_depth: int = (
        64  # sequences within sequences; structured reports, the deepest there are, use about ten
    )
    max_elements: int = (
        10_000_000  # elements and items; a slide of 190,000 frames has 5 million; read at 3 us each
    )
    max_attributes: int = 20_000  # at the top level, 0: any number; the largest modules have some hundred
    max_fragments: int = 2_000_000  # a slide has under a million tiles; two 64-bit numbers are kept for each
    max_metadata: int = 256 * 1024 * 1024  # of DICOM JSON text; 5 million elements have about 150 MB
    max_inflated: int = (
        2 * 1024**3
    )  # of a deflated dataset: a few seconds of inflating; it may be a thousandth of that on disk
    max_warnings: int = 100  # kept for one instance; the response names them all


class ReadWindow:
    """`buffer` holds the source from `start` on. `size` may be UNKNOWN_END."""

    __slots__ = ("_pread", "_size", "_step", "buffer", "start")

    def __init__(self, pread: Pread, size: int) -> None:
        self._pread = pread
        self._size = size
        self._step = _SMALLEST
        self.buffer = b""
        self.start = 0

    def load(self, position: int, need: int) -> int:
        """Have `need` bytes at `position` in the buffer; returns how many there are, fewer only at the end of
        the source."""
        held = self.start + len(self.buffer) - position
        if position >= self.start and held >= need:
            return held
        # Read on where the last window ended: larger; after a jump: small again.
        self._step = min(self._step * 2, _LARGEST) if held >= 0 and self.buffer else _SMALLEST
        length = max(need, self._step)
        self.buffer = self._pread(position, min(length, max(0, self._size - position)))
        self.start = position
        return len(self.buffer)

    def again(self) -> ReadWindow:
        """Another window on the same source."""
        return ReadWindow(self._pread, self._size)

    def bytes_at(self, position: int, length: int) -> bytes:
        """`length` bytes at `position`, fewer only at the end of the source."""
        self.load(position, length)
        at = position - self.start
        return self.buffer[at : at + length]


class Inflater:
    """The inflated dataset, read as if it were a file. Keeps what follows the offset read last; never more
    than asked for plus a step."""

    def __init__(self, pread: Pread, start: int, end: int, limit: int) -> None:
        self._source = pread
        self._start = start
        self._end = end
        self._limit = limit
        self._restart()

    def _restart(self) -> None:
        self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
        self._next = self._start  # where the compressed bytes go on
        self._kept = b""
        self._kept_at = 0

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes of the inflated dataset; fewer only at its end. Beyond its end: NotDicom, a length has
        lied."""
        if offset < self._kept_at:
            self._restart()
        pieces = [self._kept]
        end = self._kept_at + len(self._kept)
        while end < offset + length:
            more = self._inflate(end)
            if not more:
                break
            if end <= offset:
                pieces, self._kept_at = [], end
            pieces.append(more)
            end += len(more)
        if offset > end:
            raise NotDicom("a length points beyond the end of the inflated dataset", offset=offset)
        if len(pieces) != 1 or pieces[0] is not self._kept:
            self._kept = b"".join(pieces)[offset - self._kept_at :]
            self._kept_at = offset
        at = offset - self._kept_at
        return self._kept[at : at + length]

    def _inflate(self, end: int) -> bytes:
        """The next piece, at most 256 kB, which begins at `end`; b"" at the end of the stream."""
        while not self._stream.eof:
            fresh = self._stream.unconsumed_tail
            if not fresh:
                fresh = self._source(self._next, min(_LARGEST, self._end - self._next))
                self._next += len(fresh)
            try:
                piece = self._stream.decompress(fresh, _LARGEST)
            except zlib.error as error:
                raise NotDicom(f"the deflated dataset is damaged: {error}", offset=self._next) from None
            if piece:
                if end + len(piece) > self._limit:
                    raise InstanceRefused(f"the dataset inflates to more than {self._limit:,} bytes")
                return piece
            if not fresh:
                raise NotDicom("the deflated dataset is truncated", offset=self._next)
        return b""
