"""JPEG XL (ISO/IEC 18181) by libjxl in imagecodecs: lossless, lossy, and recompressed baseline JPEG.

`recompress` and `restore` change the transfer syntax without touching pixels: `restore` returns the JPEG
codestream byte for byte. JPEG XL has no signed samples.

`read_jpegxl_header` reads size, depth and colour (18181-1 annex D). The codestream is bare or lies in boxes
(18181-2): 16-bit lossless needs level 10, which only a box can state. Bits come lowest first. The reader
refuses features that no frame of a dataset has: previews, animations, turned pictures and extra channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from framecodecs import samples
from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.codestream import CodestreamHeader, big_endian
from framecodecs.libraries import guarded, load
from framecodecs.samples import Decoded

SIGNATURE = b"\xff\x0a"
CONTAINER = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
ENOUGH = 64  # bytes: size, depth and colour take under 40
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
SIZE_BITS = ((1, 9), (1, 13), (1, 18), (1, 30))
DEPTH_BITS = ((8, 0), (10, 0), (12, 0), (1, 6))
ENUM_BITS = ((0, 0), (1, 0), (2, 4), (18, 6))
EXTRA_CHANNEL_BITS = ((0, 0), (1, 0), (2, 4), (1, 12))
GREY = 1


@dataclass(frozen=True)
class JpegXlHeader(CodestreamHeader):
    """`recompressed`: the boxes hold the data that restores the JPEG file. `xyb`: the colour is in that space
    (PS3.3 C.7.6.3.1.2)."""

    recompressed: bool
    xyb: bool


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "little")
        self.left = 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise CodestreamError("the codestream ends inside its headers")
        self.left -= count
        taken = self.value & ((1 << count) - 1)
        self.value >>= count
        return taken

    def choose(self, table: tuple[tuple[int, int], ...]) -> int:
        """Two bits choose a row: a base, and the number of bits that follow."""
        base, count = table[self.take(2)]
        return base + self.take(count)


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    rows = 8 * (bits.take(5) + 1) if small else bits.choose(SIZE_BITS)
    if ratio := bits.take(3):
        over, under = RATIOS[ratio - 1]
        return rows, rows * over // under
    return rows, 8 * (bits.take(5) + 1) if small else bits.choose(SIZE_BITS)


def _extra_fields(bits: _Bits) -> None:
    if not bits.take(1):
        return
    if bits.take(3):
        raise CodestreamError("the picture is to be turned")
    if bits.take(1):
        _size(bits)
    if bits.take(1) or bits.take(1):
        raise CodestreamError("the codestream has a preview or is an animation")


def _depth_components_xyb(bits: _Bits) -> tuple[int, int, bool]:
    if bits.take(1):
        return 8, 3, True
    _extra_fields(bits)
    if bits.take(1):
        raise CodestreamError("the codestream has floating-point samples")
    precision = bits.choose(DEPTH_BITS)
    bits.take(1)
    if bits.choose(EXTRA_CHANNEL_BITS):
        raise CodestreamError("the codestream has extra channels")
    xyb = bool(bits.take(1))
    if bits.take(1):
        return precision, 3, xyb
    bits.take(1)
    return precision, 1 if bits.choose(ENUM_BITS) == GREY else 3, xyb


def _boxes(frame: bytes) -> tuple[bytes, bool, int]:
    """Returns the start of the codestream, whether JPEG can be restored, and the offset behind the boxes."""
    start, recompressed, position = b"", False, 0
    while position + 8 <= len(frame):
        length, kind = big_endian(frame, position, 4), frame[position + 4 : position + 8]
        if length == 0:
            length = len(frame) - position
        if not kind.strip(b"\0"):
            break  # padding of the frame, not a box
        if length < 8 or position + length > len(frame):
            raise CodestreamError("the codestream ends inside a box")
        skip = {b"jxlc": 8, b"jxlp": 12}.get(kind)
        if skip and len(start) < ENOUGH:
            start += frame[position + skip : min(position + length, position + skip + ENOUGH)]
        recompressed = recompressed or kind == b"jbrd"
        position += length
    return start, recompressed, position


def read_jpegxl_header(frame: bytes) -> JpegXlHeader:
    """Reads size, depth and number of colours. Raises CodestreamError."""
    start, recompressed, end = frame[:ENOUGH], False, len(frame)
    if frame[:12] == CONTAINER:
        start, recompressed, end = _boxes(frame)
    if start[:2] != SIGNATURE:
        raise CodestreamError("no JPEG XL signature where the codestream begins")
    bits = _Bits(start[2:])
    rows, columns = _size(bits)
    precision, components, xyb = _depth_components_xyb(bits)
    return JpegXlHeader(rows, columns, components, precision, 0, end, recompressed, xyb)


def header_of(frame: bytes, info: FrameInfo) -> JpegXlHeader:
    return read_jpegxl_header(frame)


def decode(frame: bytes, info: FrameInfo, header: JpegXlHeader) -> tuple[bytes, FrameInfo]:
    with guarded(DecodeError, "JPEG XL"):
        decoded = (
            load("imagecodecs").jpegxl_decode(header.codestream(frame), numthreads=1).reshape(info.shape)
        )
    photometric = "RGB" if info.samples_per_pixel == 3 else info.photometric_interpretation
    return samples.to_frame(Decoded(decoded, header.precision, False, photometric), info)


def encode(
    frame: bytes, info: FrameInfo, options: EncodeOptions, lossless: bool = True
) -> tuple[bytes, FrameInfo]:
    chosen: dict[str, object] = {"lossless": True, "effort": options.effort}
    if not lossless:
        chosen = {"level": options.quality, "effort": max(options.effort, 3)}
    values = samples.to_array(frame, info).astype("u1" if info.bits_stored <= 8 else "<u2", copy=False)
    with guarded(EncodeError, "JPEG XL"):
        encoded = load("imagecodecs").jpegxl_encode(
            np.ascontiguousarray(values), bitspersample=info.bits_stored, numthreads=1, **chosen
        )
    coded = samples.stored_low(info)
    if info.samples_per_pixel == 3 and read_jpegxl_header(encoded).xyb:
        coded = coded.with_colour("XYB")
    return bytes(encoded), coded


def recompress(frame: bytes, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """Packs a JPEG codestream into JPEG XL."""
    with guarded(EncodeError, "JPEG XL"):
        return bytes(load("imagecodecs").jpegxl_encode_jpeg(frame, numthreads=1)), info


def restore(frame: bytes, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """Returns the packed JPEG codestream."""
    with guarded(DecodeError, "JPEG XL"):
        return bytes(load("imagecodecs").jpegxl_decode_jpeg(frame, numthreads=1)), info
