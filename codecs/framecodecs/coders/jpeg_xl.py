"""JPEG XL (ISO/IEC 18181) by libjxl in imagecodecs: lossless, lossy, and recompressed baseline JPEG.

`recompress` and `restore` change the transfer syntax without touching pixels: `restore` returns the JPEG
codestream byte for byte. JPEG XL has no signed samples.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.errors import DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpegxl_header import JpegXlHeader, read_jpegxl_header
from framecodecs.libraries import guarded, load
from framecodecs.samples import Decoded


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
