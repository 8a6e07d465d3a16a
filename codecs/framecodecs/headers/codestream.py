"""The common part of all codestream headers, their comparison with the dataset, and the header of RLE
Lossless.

Libraries allocate the sizes of a header, and some never return from an altered one. So the readers
`jpeg_header`, `jpeg2000_header`, `read_jpegxl_header` and `read_rle_header` read the marker segments of a
complete codestream and decode nothing. `agree` refuses a header that does not fit the dataset. The readers
also detect a cut codestream, which several libraries fill with grey without an error.

RLE Lossless (PS3.5 annex G) has a count and fifteen offsets, little-endian, in 64 bytes. There is one segment
for each byte of a sample, the most significant byte first (G.2). Offsets rise and lie inside the frame. A
pixel of one bit takes a byte (G.2), yet some encoders pack eight into one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo

HEADER = struct.Struct("<16I")
MOST_GAIN = 64  # two bytes of PackBits become at most 128


@dataclass(frozen=True)
class CodestreamHeader:
    """Size, components and depth of the codestream, and its place in the frame."""

    rows: int
    columns: int
    components: int
    precision: int
    start: int
    end: int

    def codestream(self, frame: bytes) -> bytes:
        """Returns the frame without boxes and padding."""
        return frame if (self.start, self.end) == (0, len(frame)) else frame[self.start : self.end]


def agree(header: CodestreamHeader, info: FrameInfo) -> None:
    """Raises CodestreamError unless the codestream holds exactly the frame of the dataset."""
    if (header.rows, header.columns) != (info.rows, info.columns):
        stated = f"the dataset {info.rows} x {info.columns}"
        raise CodestreamError(f"the codestream has {header.rows} x {header.columns} pixels, {stated}")
    if header.components != info.samples_per_pixel:
        raise CodestreamError(
            f"the codestream has {header.components} components, the dataset {info.samples_per_pixel} samples"
        )
    if not 1 <= header.precision <= info.bits_allocated:
        raise CodestreamError(
            f"the codestream has {header.precision} bits a sample, allocated are {info.bits_allocated}"
        )


def big_endian(frame: bytes, offset: int, length: int) -> int:
    """Returns an unsigned number. Raises CodestreamError, with the offset, if the frame ends before it."""
    piece = frame[offset : offset + length]
    if len(piece) < length:
        raise CodestreamError(f"the codestream ends inside its headers, at byte {len(frame)}")
    return int.from_bytes(piece, "big")


def read_rle_header(frame: bytes, info: FrameInfo) -> CodestreamHeader:
    """Raises CodestreamError unless the segments fit `info` and can hold its pixels."""
    if len(frame) < HEADER.size:
        raise CodestreamError(
            f"an RLE frame has a header of {HEADER.size} bytes, this one {len(frame)} bytes in all"
        )
    count, *offsets = HEADER.unpack_from(frame)
    width = info.container.itemsize
    if count != info.samples_per_pixel * width:
        raise CodestreamError(f"{count} RLE segments, the dataset needs {info.samples_per_pixel * width}")
    bounds = [*offsets[:count], len(frame)]
    if bounds[0] != HEADER.size or any(a >= b for a, b in pairwise(bounds)):
        raise CodestreamError("RLE segment offsets do not rise from 64 to the end of the frame")
    least = info.frame_length if info.bits_allocated == 1 else info.rows * info.columns
    if any((b - a) * MOST_GAIN < least for a, b in pairwise(bounds)):
        raise CodestreamError("an RLE segment is too short for its pixels")
    return CodestreamHeader(
        info.rows, info.columns, info.samples_per_pixel, info.bits_allocated, 0, len(frame)
    )
