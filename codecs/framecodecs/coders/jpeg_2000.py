"""JPEG 2000 (ISO/IEC 15444-1) by OpenJPEG, in imagecodecs or in pylibjpeg-openjpeg.

- The transform of the codestream decides whether components become RGB. YBR_RCT and YBR_ICT in the dataset
  only name it.
- Boxes around a codestream are removed first, so that no library converts colours by them.
- Sign and depth are those of SIZ. If the dataset contradicts the sign, `samples` reinterprets the bits.
- The encoder of pylibjpeg-openjpeg is not thread-safe. A pixel process encodes one frame at a time.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg2000_header import Jpeg2000Header, read_jpeg2000_header
from framecodecs.libraries import guarded, load
from framecodecs.samples import Decoded, Samples

TRANSFORMED = {True: "YBR_RCT", False: "YBR_ICT"}
RGB_FOR_OPENJPEG = 1
DEPTH_AT = 42  # bytes of SOC, SIZ, Lsiz, Rsiz, eight sizes and Csiz.
SHALLOW = 2  # bits; OpenJPEG sizes its buffer by depth, and noise of one bit does not fit


def header_of(frame: bytes, info: FrameInfo) -> Jpeg2000Header:
    return read_jpeg2000_header(frame)


def decibels(quality: int) -> float:
    """Returns the peak signal to noise ratio: 50 dB at quality 90, where losses are invisible, 30 at 10."""
    return 27.5 + quality / 4


def finished(decoded: Samples, info: FrameInfo, header: Jpeg2000Header) -> tuple[bytes, FrameInfo]:
    """Returns the frame with the name of its colour now. HTJ2K uses this, too."""
    photometric = samples.interleaved_info(info).photometric_interpretation
    return samples.to_frame(Decoded(decoded, header.precision, header.signed, photometric), info)


def decode(frame: bytes, info: FrameInfo, header: Jpeg2000Header, cores: int = 1) -> tuple[bytes, FrameInfo]:
    with guarded(DecodeError, "JPEG 2000"):
        decoded = load("imagecodecs").jpeg2k_decode(header.codestream(frame), planar=False, numthreads=cores)
        decoded = decoded.reshape(info.shape)
    return finished(decoded, info, header)


def decode_by_openjpeg(frame: bytes, info: FrameInfo, header: Jpeg2000Header) -> tuple[bytes, FrameInfo]:
    if header.precision > 24:
        raise CodestreamError(f"{header.precision} bits a sample, OpenJPEG's wrapper reads 24")
    width = 1 if header.precision <= 8 else 2 if header.precision <= 16 else 4
    with guarded(DecodeError, "JPEG 2000"):
        raw = load("pylibjpeg-openjpeg").decode_pixel_data(header.codestream(frame), version=2)
        decoded = np.frombuffer(raw, f"<{'ui'[header.signed]}{width}").reshape(info.shape)
    return finished(decoded, info, header)


def centred(values: Samples, info: FrameInfo) -> Samples:
    """Returns values around zero as signed numbers of 8 or 16 bits, to be encoded with that depth.

    The difference is the level shift of unsigned samples of P bits, which a decoder adds. QCD has exponents
    of its own. So in a reversible codestream only the depth in SIZ has to change.
    """
    narrow = "i1" if info.bits_stored <= 8 else "<i2"
    if info.pixel_representation:
        return values.astype(narrow, copy=False)
    wide = values.astype(f"<u{np.dtype(narrow).itemsize}", copy=False)
    around_zero: Samples = wide - wide.dtype.type(1 << (info.bits_stored - 1))
    return around_zero.view(narrow)


def with_depth(codestream: bytes, info: FrameInfo) -> bytes:
    """Returns the codestream with the sign and depth of `info` in its SIZ segment."""
    named = bytearray(codestream)
    for component in range(info.samples_per_pixel):
        named[DEPTH_AT + 3 * component] = info.pixel_representation << 7 | (info.bits_stored - 1)
    return bytes(named)


def _prepared(frame: bytes, info: FrameInfo, reversible: bool) -> tuple[Samples, FrameInfo, bool]:
    """Returns the samples in 1 or 2 bytes, the attributes after encoding, and whether RGB is transformed."""
    values = samples.to_array(frame, info)
    values = values.astype(f"{values.dtype.kind}{1 if info.bits_stored <= 8 else 2}", copy=False)
    info = samples.stored_low(info)
    transform = info.photometric_interpretation == "RGB"
    return values, info.with_colour(TRANSFORMED[reversible]) if transform else info, transform


def encode(
    frame: bytes, info: FrameInfo, options: EncodeOptions, reversible: bool = True
) -> tuple[bytes, FrameInfo]:
    values, out, transform = _prepared(frame, info, reversible)
    shallow = info.bits_stored <= SHALLOW and reversible
    with guarded(EncodeError, "JPEG 2000"):
        encoded = load("imagecodecs").jpeg2k_encode(
            centred(values, info) if shallow else values,
            None if reversible else decibels(options.quality),
            codecformat="j2k",
            bitspersample=None if shallow else info.bits_stored,
            reversible=reversible,
            planar=False,
            mct=transform,
            numthreads=options.cores,
        )
    return with_depth(encoded, info), out


def encode_by_openjpeg(
    frame: bytes, info: FrameInfo, options: EncodeOptions, reversible: bool = True
) -> tuple[bytes, FrameInfo]:
    values, out, transform = _prepared(frame, info, reversible)
    with guarded(EncodeError, "JPEG 2000"):
        encoded = load("pylibjpeg-openjpeg").encode_buffer(
            values.tobytes(),
            info.columns,
            info.rows,
            info.samples_per_pixel,
            info.bits_stored,
            bool(info.pixel_representation),
            photometric_interpretation=RGB_FOR_OPENJPEG if transform else 0,
            use_mct=transform,
            signal_noise_ratios=None if reversible else [decibels(options.quality)],
        )
    return bytes(encoded), out
