"""JPEG baseline, extended and lossless (ISO/IEC 10918-1) by libjpeg-turbo in imagecodecs.

- Lossy colour is decoded to RGB. Adobe's marker, JFIF or component names say, in that order, whether a
  codestream is YCbCr or RGB inside. Without any of them the dataset decides.
- Lossless colour is never converted: the dataset names its components.
- Lossless JPEG has no sign. Signed pixels are coded as unsigned numbers of Bits Stored bits, and the decoder
  extends their sign.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.coders import libjpeg
from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg_header import (
    BASELINE,
    EXTENDED,
    LOSSLESS,
    PROGRESSIVE,
    JpegHeader,
    read_jpeg_header,
)
from framecodecs.libraries import guarded, load
from framecodecs.samples import Decoded

FIRST_ORDER_PREDICTOR = 1
COLOUR_BY_ADOBE = {0: "RGB", 1: "YCBCR"}


def _header(frame: bytes, processes: frozenset[int], depths: range) -> JpegHeader:
    header = read_jpeg_header(frame)
    if header.process not in processes or header.precision not in depths:
        raise CodestreamError(
            f"coding process FF{header.process:02X} with {header.precision} bits is not of this syntax"
        )
    return header


def lossy_header(frame: bytes, info: FrameInfo) -> JpegHeader:
    """Accepts extended files that claim to be baseline, and the reverse: both decode alike."""
    return _header(frame, frozenset({BASELINE, EXTENDED, PROGRESSIVE}), range(8, 13, 4))


def lossless_header(frame: bytes, info: FrameInfo) -> JpegHeader:
    return _header(frame, frozenset({LOSSLESS}), range(2, 17))


def coded_colour(header: JpegHeader, info: FrameInfo) -> str:
    """Returns RGB or YCBCR, the colour model of the three components of a lossy codestream."""
    if header.adobe in COLOUR_BY_ADOBE:
        return COLOUR_BY_ADOBE[header.adobe]
    if header.jfif:
        return "YCBCR"
    return "RGB" if header.component_ids == b"RGB" or info.photometric_interpretation == "RGB" else "YCBCR"


def decode_lossy(frame: bytes, info: FrameInfo, header: JpegHeader) -> tuple[bytes, FrameInfo]:
    colour = {}
    photometric = info.photometric_interpretation
    if header.components == 3:
        colour = {"colorspace": coded_colour(header, info), "outcolorspace": "RGB"}
        photometric = "RGB"
    with guarded(DecodeError, "JPEG"):
        decoded = load("imagecodecs").jpeg8_decode(header.codestream(frame), **colour)
    if info.high_bit + 1 == info.bits_stored < header.precision and not info.pixel_representation:
        # A loss may raise a value above the greatest number of Bits Stored, which masking would make small.
        decoded = np.minimum(decoded, (1 << info.bits_stored) - 1)
    return samples.to_frame(Decoded(decoded, header.precision, False, photometric), info)


def decode_lossless(frame: bytes, info: FrameInfo, header: JpegHeader) -> tuple[bytes, FrameInfo]:
    colour = {"colorspace": "RGB", "outcolorspace": "RGB"} if header.components == 3 else {}
    with guarded(DecodeError, "JPEG lossless"):
        decoded = load("imagecodecs").jpeg8_decode(header.codestream(frame), **colour)
    photometric = samples.interleaved_info(info).photometric_interpretation
    return samples.to_frame(Decoded(decoded, header.precision, False, photometric), info)


def encode_lossy(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    """Writes colour as YCbCr; `chroma` 422 halves its chrominance across."""
    precision = 8 if info.bits_stored <= 8 else 12
    values = samples.to_array(frame, info).astype("u1" if precision == 8 else "<u2", copy=False)
    info = samples.stored_low(info)
    if precision == 12 and info.samples_per_pixel == 1:
        encoded = libjpeg.encode(values, options.quality)
        if encoded is not None:
            return encoded, info
    arguments: dict[str, str] = {}
    if info.samples_per_pixel == 3:
        given = "RGB" if info.photometric_interpretation == "RGB" else "YCBCR"
        arguments = {"colorspace": given, "outcolorspace": "YCBCR", "subsampling": options.chroma}
        info = info.with_colour("YBR_FULL_422" if options.chroma == "422" else "YBR_FULL")
    with guarded(EncodeError, "JPEG"):
        encoded = load("imagecodecs").jpeg8_encode(
            values, options.quality, bitspersample=precision, **arguments
        )
    return bytes(encoded), info


def encode_lossless(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    values = samples.unsigned(samples.to_array(frame, info), info.bits_stored)
    info = samples.stored_low(info)
    values = values.astype("u1" if info.bits_stored <= 8 else "<u2", copy=False)
    colour = {"colorspace": "RGB", "outcolorspace": "RGB"} if info.samples_per_pixel == 3 else {}
    with guarded(EncodeError, "JPEG lossless"):
        encoded = load("imagecodecs").jpeg8_encode(
            values, lossless=True, predictor=FIRST_ORDER_PREDICTOR, bitspersample=info.bits_stored, **colour
        )
    return bytes(encoded), info
