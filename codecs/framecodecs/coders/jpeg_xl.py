"""JPEG XL (ISO/IEC 18181) by libjxl, as imagecodecs carries it: lossless, lossy, and baseline JPEG packed
without loss.

Packed JPEG (`recompress`, `restore`) is the one change of transfer syntax that touches no pixel: the JPEG
codestream comes back byte for byte. JPEG XL has no signed samples.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.errors import DecodeError, EncodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.headers.jpegxl_header import JpegXlHeader, read_jpegxl_header
from framecodecs.libraries import guarded, load
from framecodecs.options import EncodeOptions
from framecodecs.samples import Decoded

LIBRARY = "imagecodecs"


def header_of(frame: bytes, info: FrameInfo) -> JpegXlHeader:
    return read_jpegxl_header(frame)


def decode(frame: bytes, info: FrameInfo, header: JpegXlHeader) -> tuple[bytes, FrameInfo]:
    with guarded(DecodeError, "JPEG XL"):
        decoded = load(LIBRARY).jpegxl_decode(header.codestream(frame), numthreads=1).reshape(info.shape)
    photometric = "RGB" if info.samples_per_pixel == 3 else info.photometric_interpretation
    return samples.to_frame(Decoded(decoded, header.precision, False, photometric), info)


def _encode(frame: bytes, info: FrameInfo, how: dict[str, object]) -> tuple[bytes, FrameInfo]:
    values = samples.to_array(frame, info).astype("u1" if info.bits_stored <= 8 else "<u2", copy=False)
    with guarded(EncodeError, "JPEG XL"):
        encoded = load(LIBRARY).jpegxl_encode(
            np.ascontiguousarray(values), bitspersample=info.bits_stored, numthreads=1, **how
        )
    coded = samples.stored_low(info)
    if info.samples_per_pixel == 3 and read_jpegxl_header(encoded).xyb:
        coded = coded.with_colour("XYB")
    return bytes(encoded), coded


def encode_lossless(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    return _encode(frame, info, {"lossless": True, "effort": options.effort})


def encode_lossy(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    return _encode(frame, info, {"level": options.quality, "effort": max(options.effort, 3)})


def recompress(frame: bytes, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """A JPEG codestream packed into JPEG XL."""
    with guarded(EncodeError, "JPEG XL"):
        return bytes(load(LIBRARY).jpegxl_encode_jpeg(frame, numthreads=1)), info


def restore(frame: bytes, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """The JPEG codestream that was packed."""
    with guarded(DecodeError, "JPEG XL"):
        return bytes(load(LIBRARY).jpegxl_decode_jpeg(frame, numthreads=1)), info
