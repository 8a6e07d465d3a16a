"""JPEG-LS (ISO/IEC 14495-1) by CharLS. imagecodecs has the newer one, for decoding. For encoding, pyjpegls
accepts a depth, as does the C interface of the newer one (charls.py).

JPEG-LS has no sign. Signed pixels are coded as unsigned numbers of Bits Stored bits, and the decoder extends
their sign. Near-lossless coding could turn the largest of these numbers into the smallest, so signed pixels
are not encoded near-lossless.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.coders import charls
from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg_header import JPEG_LS, JpegHeader, read_jpeg_header
from framecodecs.libraries import guarded, load
from framecodecs.samples import Decoded, Samples

INTERLEAVED_BY_SAMPLE = 2


def header_of(frame: bytes, info: FrameInfo) -> JpegHeader:
    header = read_jpeg_header(frame)
    if header.process != JPEG_LS or header.precision not in range(2, 17):
        raise CodestreamError(
            f"coding process FF{header.process:02X} with {header.precision} bits is not JPEG-LS"
        )
    return header


def _finished(decoded: Samples, info: FrameInfo, header: JpegHeader) -> tuple[bytes, FrameInfo]:
    photometric = samples.interleaved_info(info).photometric_interpretation
    return samples.to_frame(Decoded(decoded, header.precision, False, photometric), info)


def decode(frame: bytes, info: FrameInfo, header: JpegHeader) -> tuple[bytes, FrameInfo]:
    with guarded(DecodeError, "JPEG-LS"):
        decoded = load("imagecodecs").jpegls_decode(header.codestream(frame))
    return _finished(decoded, info, header)


def decode_by_pyjpegls(frame: bytes, info: FrameInfo, header: JpegHeader) -> tuple[bytes, FrameInfo]:
    with guarded(DecodeError, "JPEG-LS"):
        raw, about = load("pyjpegls").decode_buffer(header.codestream(frame))
        decoded = np.frombuffer(raw, "u1" if header.precision <= 8 else "<u2")
        if info.samples_per_pixel > 1 and about["interleave_mode"] == 0:
            decoded = np.moveaxis(decoded.reshape(-1, info.rows, info.columns), 0, -1)
        decoded = decoded.reshape(info.shape)
    return _finished(decoded, info, header)


def _prepared(frame: bytes, info: FrameInfo) -> tuple[Samples, FrameInfo]:
    values = samples.unsigned(samples.to_array(frame, info), info.bits_stored)
    return values.astype("u1" if info.bits_stored <= 8 else "<u2", copy=False), samples.stored_low(info)


def _encode(frame: bytes, info: FrameInfo, near: int) -> tuple[bytes, FrameInfo]:
    values, info = _prepared(frame, info)
    encoded = charls.encode(values, info, near)
    if encoded is not None:
        return encoded, info
    with guarded(EncodeError, "JPEG-LS"):
        encoded = load("pyjpegls").encode_buffer(
            values.tobytes(),
            info.rows,
            info.columns,
            info.samples_per_pixel,
            info.bits_stored,
            near,
            INTERLEAVED_BY_SAMPLE if info.samples_per_pixel > 1 else 0,
        )
    return bytes(encoded), info


def encode_lossless(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    return _encode(frame, info, 0)


def encode_near_lossless(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    return _encode(frame, info, min(options.near, max((1 << info.bits_stored) // 2 - 1, 1)))


def encode_in_whole_bytes(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    """Encodes with imagecodecs: lossless, with a depth of 8 or 16 bits. The buffer of pyjpegls is too small
    for the headers of a few pixels."""
    values, info = _prepared(frame, info)
    with guarded(EncodeError, "JPEG-LS"):
        return bytes(load("imagecodecs").jpegls_encode(values)), info
