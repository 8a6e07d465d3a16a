"""Frames that keep all their bits, those above the high bit too: native ones, deflated ones (PS3.5 A.1, A.2,
A.3, A.5, A.4.12), and RLE Lossless (annex G) by pylibjpeg-rle.

Big-endian pixel data of VR OW is swapped in words of 16 bits for any Bits Allocated (PS3.5 A.3). So 8-bit
pixels come in swapped pairs; those of VR OB are not swapped. Of wider samples all bytes are reversed.
"""

from __future__ import annotations

import zlib

import numpy as np

from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.codestream import CodestreamHeader
from framecodecs.libraries import guarded, load
from framecodecs.samples import interleaved_info, native

DEFLATE_LEVEL = 6  # level 9 takes twice the time for 1 % on CT


def whole_header(frame: bytes, info: FrameInfo) -> CodestreamHeader:
    """Returns the attributes of the dataset: the frame has no header. Its length is checked later."""
    return CodestreamHeader(
        info.rows, info.columns, info.samples_per_pixel, info.bits_allocated, 0, len(frame)
    )


def decode_little_endian(
    frame: bytes, info: FrameInfo, header: CodestreamHeader | None = None
) -> tuple[bytes, FrameInfo]:
    return native(frame, info)


def decode_big_endian(frame: bytes, info: FrameInfo, header: CodestreamHeader) -> tuple[bytes, FrameInfo]:
    width = max(info.bits_allocated // 8, 1)
    frame = bytes(memoryview(frame)[: len(frame) - len(frame) % width])
    return native(np.frombuffer(frame, f"u{width}").byteswap().tobytes(), info)


def swap_words(frame: bytes) -> bytes:
    """Exchanges the bytes of each 16-bit word. Raises CodestreamError for half a word."""
    if len(frame) % 2:
        raise CodestreamError(f"a frame of {len(frame)} bytes does not consist of 16-bit words")
    return np.frombuffer(frame, np.uint16).byteswap().tobytes()


def encode_little_endian(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    return native(frame, info)


def decode_deflated(frame: bytes, info: FrameInfo, header: CodestreamHeader) -> tuple[bytes, FrameInfo]:
    """Inflates at most the length of the frame."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with guarded(DecodeError, "deflate"):
        out = inflater.decompress(frame, info.frame_length + 2)
    if not inflater.eof:
        raise CodestreamError("the deflated frame is cut, or longer than its attributes say")
    return native(out, info)


def encode_deflated(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    frame, info = native(frame, info)
    deflater = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(frame) + deflater.flush(), info


def decode_rle(frame: bytes, info: FrameInfo, header: CodestreamHeader) -> tuple[bytes, FrameInfo]:
    """Returns a frame by pixel; the library decodes to planes."""
    if info.bits_allocated == 1:
        return _decode_rle_bits(frame, info), info
    with guarded(DecodeError, "RLE"):
        planes = load("pylibjpeg-rle").decode_frame(frame, info.rows * info.columns, info.bits_allocated, "<")
    out = interleaved_info(info)
    if len(planes) != out.frame_length:
        raise DecodeError(f"RLE: decoded to {len(planes)} bytes instead of {out.frame_length}")
    if info.samples_per_pixel == 1:
        return bytes(planes), out
    by_plane = np.frombuffer(planes, info.container).reshape(info.samples_per_pixel, -1)
    return by_plane.T.tobytes(), out


def _decode_rle_bits(frame: bytes, info: FrameInfo) -> bytes:
    """Returns packed bits. A segment has a byte for each pixel (G.2), or is packed already."""
    decode_frame, pixels = load("pylibjpeg-rle").decode_frame, info.rows * info.columns
    try:
        with guarded(DecodeError, "RLE"):
            unpacked = decode_frame(frame, pixels, 8, "<")
    except DecodeError:
        with guarded(DecodeError, "RLE"):
            return bytes(decode_frame(frame, info.frame_length, 8, "<"))
    return np.packbits(np.frombuffer(unpacked, np.uint8) != 0, bitorder="little").tobytes()


def encode_rle(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    frame, info = native(frame, info)
    with guarded(EncodeError, "RLE"):
        encoded = load("pylibjpeg-rle").encode_frame(
            frame, info.rows, info.columns, info.samples_per_pixel, info.bits_allocated, "<"
        )
    return bytes(encoded), info
