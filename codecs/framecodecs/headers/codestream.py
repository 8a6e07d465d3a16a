"""What every codestream header has in common, and the comparison with the dataset that goes before any
library.

Libraries allocate what a header asks for, and some never return from a header that was altered. So each of
our own small readers (`jpeg_header`, `jpeg2000_header`, `jpegxl_header`, `rle_header`) walks the marker
segments of a complete codestream without decoding anything, and `agree` refuses what does not fit the
dataset. That a codestream is cut off is noticed here too: several libraries fill the missing half with grey
and say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo


@dataclass(frozen=True)
class Header:
    """Size, components and depth as the codestream itself says them, and where in the frame it lies."""

    rows: int
    columns: int
    components: int
    precision: int
    start: int
    end: int

    def codestream(self, frame: bytes) -> bytes:
        """The frame without wrapping and padding."""
        return frame if (self.start, self.end) == (0, len(frame)) else frame[self.start : self.end]


def agree(header: Header, info: FrameInfo) -> None:
    """CodestreamError unless the codestream holds exactly the frame that the dataset describes."""
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
    """An unsigned number; CodestreamError, with the offset, where the frame has ended."""
    piece = frame[offset : offset + length]
    if len(piece) < length:
        raise CodestreamError(f"the codestream ends inside its headers, at byte {len(frame)}")
    return int.from_bytes(piece, "big")
