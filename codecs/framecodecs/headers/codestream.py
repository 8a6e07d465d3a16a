"""The common part of all codestream headers, and their comparison with the dataset.

Libraries allocate the sizes of a header, and some never return from an altered one. So the readers
`jpeg_header`, `jpeg2000_header`, `jpegxl_header` and `rle_header` read the marker segments of a complete
codestream and decode nothing. `agree` refuses a header that does not fit the dataset. The readers also detect
a cut codestream, which several libraries fill with grey without an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo


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
