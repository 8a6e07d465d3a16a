"""Header of an RLE Lossless frame (PS3.5 annex G): a count and fifteen offsets, little-endian, in 64 bytes.

Rules: there is one segment for each byte of a sample, the most significant byte first (PS3.5 G.2). Offsets
rise and lie inside the frame.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.codestream import CodestreamHeader

HEADER = struct.Struct("<16I")
MOST_GAIN = 64  # two bytes of PackBits become at most 128


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
    pixels = info.rows * info.columns
    if any((b - a) * MOST_GAIN < pixels for a, b in pairwise(bounds)):
        raise CodestreamError("an RLE segment is too short for its pixels")
    return CodestreamHeader(
        info.rows, info.columns, info.samples_per_pixel, info.bits_allocated, 0, len(frame)
    )
