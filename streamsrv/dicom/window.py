"""Reads a Part 10 file through a window: the bytes around the reading position, and no more of the file.

Strategy: readers unpack from `ReadWindow.buffer` and call `load` when it is used up. The first window is
small, because most headers end within it. Then windows double up to 256 kB. After a jump over a value they
start small again, so that a file of any size costs only its headers.

`Inflater` reads the dataset of a deflated transfer syntax (PS3.5 A.5) with the same calls. Its offsets
count from the start of the inflated dataset. Reading forward takes one pass; reading backward starts
again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from streamsrv.errors import InstanceRefused, NotDicom

# (offset, length) -> bytes of the Part 10 file; fewer at its end.
Pread = Callable[[int, int], bytes]

# Beyond any file.
UNKNOWN_END = 1 << 62

_SMALLEST = 16 * 1024
_LARGEST = 256 * 1024


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Limits for one instance. Above a limit it is refused with InstanceRefused; for depth, which no real
    instance reaches, with NotDicom."""

    # Bytes of a binary value (OB OD OF OL OV OW UN) in the metadata; longer ones become bulk data.
    bulk_threshold: int = 1024
    # The same for all other VRs: the longest value of a 16-bit length stays in the metadata.
    text_threshold: int = 64 * 1024
    max_depth: int = 64  # nested sequences; structured reports, the deepest known, use about ten
    max_elements: int = 10_000_000  # elements and items, 3 us each; 190,000 frames of a slide have 5 million
    max_attributes: int = 20_000  # at the top level, 0: any number; the largest modules have some hundred
    max_fragments: int = 2_000_000  # 16 bytes each; a slide has less than a million tiles
    max_metadata: int = 256 * 1024 * 1024  # bytes of JSON text; 5 million elements have about 150 MB
    max_inflated: int = 2 * 1024**3  # bytes of an inflated dataset, a few seconds of inflating
    max_warnings: int = 100  # kept for one instance; the response lists them all


class ReadWindow:
    """`buffer` holds bytes of the source from `start` on. `size` may be UNKNOWN_END."""

    __slots__ = ("_pread", "_size", "_step", "buffer", "start")

    def __init__(self, pread: Pread, size: int) -> None:
        self._pread = pread
        self._size = size
        self._step = _SMALLEST
        self.buffer = b""
        self.start = 0

    def load(self, position: int, need: int) -> int:
        """Loads at least `need` bytes at `position` into the buffer. Returns how many bytes it has there,
        which is less than `need` only at the end of the source."""
        held = self.start + len(self.buffer) - position
        if position >= self.start and held >= need:
            return held
        # Windows grow while the reader moves on, and are small again after a jump.
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
    """Reads the inflated dataset like a file. It keeps the bytes behind the last offset: at most the length
    of one call and one step."""

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
        """Returns bytes of the inflated dataset; fewer at its end. Raises NotDicom for an offset behind
        it."""
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
        """Returns the next piece, at most 256 kB, which begins at `end`; b"" at the end of the stream."""
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
