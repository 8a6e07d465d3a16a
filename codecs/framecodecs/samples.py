"""Converts between frames and arrays: bit packing, planes, chrominance subsampling and signs.

- `to_array` returns a native frame as an interleaved array of values, sign-extended from Bits Stored. So no
  codec sees planes, packed bits, or bits above the high bit, which have no meaning (PS3.5 8.1.1).
- `to_frame` reverses it. A codestream may hold signed pixels as unsigned numbers of `precision` bits (JPEG
  lossless, JPEG-LS), or with a sign that contradicts the dataset (JPEG 2000). The dataset decides, and the
  bits are reinterpreted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framecodecs.errors import CodestreamError
from framecodecs.frameinfo import FrameInfo

Samples = NDArray[Any]
DECODED_COLOUR = {
    "YBR_ICT": "RGB",
    "YBR_RCT": "RGB",
    "YBR_FULL_422": "YBR_FULL",
    "YBR_PARTIAL_422": "YBR_FULL",
}
"""The name of a colour after decoding, when every pixel has all its samples."""


@dataclass(frozen=True)
class Decoded:
    """The array that a library returned, and the depth, sign and colour of its numbers."""

    samples: Samples
    precision: int
    signed: bool
    photometric_interpretation: str


def exact_frame(frame: bytes, info: FrameInfo) -> bytes:
    """Returns the frame without its padding. Raises CodestreamError if it is too short."""
    length = info.frame_length
    if len(frame) < length:
        raise CodestreamError(f"the frame has {len(frame)} bytes, its attributes say {length}")
    return frame if len(frame) == length else bytes(memoryview(frame)[:length])


def interleaved_info(info: FrameInfo) -> FrameInfo:
    """Returns the attributes of the result of `to_array`: interleaved, no shared chrominance."""
    return info.with_colour(
        DECODED_COLOUR.get(info.photometric_interpretation, info.photometric_interpretation)
    )


def _unpacked(frame: bytes, info: FrameInfo) -> Samples:
    bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")
    return bits[: info.rows * info.columns * info.samples_per_pixel].reshape(info.shape)


def _chroma_shared(frame: bytes, info: FrameInfo) -> Samples:
    """Turns Y1 Y2 Cb Cr of two pixels into Y Cb Cr of each: the chrominance is repeated."""
    pairs = np.frombuffer(frame, info.container).reshape(info.rows, -1, 4)
    out = np.empty((info.rows, pairs.shape[1], 2, 3), info.container)
    out[..., 0] = pairs[..., :2]
    out[..., 1:] = pairs[:, :, np.newaxis, 2:]
    return out.reshape(info.rows, -1, 3)[:, : info.columns]


def raw_array(frame: bytes, info: FrameInfo) -> Samples:
    """Returns the frame as an interleaved array of its containers, with all bits."""
    frame = exact_frame(frame, info)
    if info.bits_allocated == 1:
        return _unpacked(frame, info)
    if info.subsampled:
        return _chroma_shared(frame, info)
    flat = np.frombuffer(frame, info.container)
    if info.samples_per_pixel > 1 and info.planar_configuration == 1:
        planes = flat.reshape(info.samples_per_pixel, info.rows, info.columns)
        return np.stack(list(planes), axis=-1)
    return flat.reshape(info.shape)


def to_array(frame: bytes, info: FrameInfo) -> Samples:
    """Returns the values of a native frame, interleaved: shifted down from the high bit, and sign-extended
    from Bits Stored."""
    raw = raw_array(frame, info)
    if info.floating:
        return raw.view(info.sample_type)
    if info.bits_allocated == 1 or (info.bits_stored == info.bits_allocated):
        return raw.view(info.sample_type) if info.pixel_representation else raw
    if not info.pixel_representation:
        spare = info.high_bit + 1 - info.bits_stored
        greatest = (1 << info.bits_stored) - 1
        if not spare and raw.max() <= greatest:  # true of nearly all frames, and faster than a copy
            return raw
        values: Samples = (raw >> spare if spare else raw) & raw.dtype.type(greatest)
        return values
    above = info.bits_allocated - 1 - info.high_bit
    down = info.bits_allocated - info.bits_stored
    return np.ascontiguousarray(raw << above).view(info.sample_type) >> down


def unsigned(samples: Samples, bits: int) -> Samples:
    """Returns values as unsigned numbers of `bits` bits, for a codec without signs."""
    if samples.dtype.kind == "u":
        return samples
    mask = np.array((1 << bits) - 1, f"u{samples.itemsize}")
    whole: Samples = samples.view(mask.dtype)
    return whole if bits == 8 * samples.itemsize else whole & mask


def sign_extended(samples: Samples, bits: int) -> Samples:
    """Reads the lowest `bits` bits of each container as two's complement."""
    spare = 8 * samples.itemsize - bits
    signed: Samples = samples.view(f"i{samples.itemsize}")
    return signed if spare == 0 else (signed << spare) >> spare


def _reinterpreted(decoded: Decoded, info: FrameInfo) -> Samples:
    samples: Samples = decoded.samples
    width = info.container.itemsize
    if decoded.signed == bool(info.pixel_representation):
        return samples.astype(info.sample_type, copy=False)
    if decoded.signed:
        wide = samples.astype(f"<i{width}", copy=False)
        return unsigned(wide, decoded.precision).astype(info.container, copy=False)
    bits = min(decoded.precision, info.bits_stored)
    return sign_extended(samples.astype(info.container, copy=False), bits)


def to_frame(decoded: Decoded, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """Returns the native, interleaved frame of a decoded array."""
    if decoded.samples.shape != info.shape:
        raise CodestreamError(f"decoded to {decoded.samples.shape}, the dataset says {info.shape}")
    out = info.with_colour(decoded.photometric_interpretation)
    if info.bits_allocated == 1:
        return np.packbits(decoded.samples.astype(bool), bitorder="little").tobytes(), out
    return _reinterpreted(decoded, info).tobytes(), out


def native(frame: bytes, info: FrameInfo) -> tuple[bytes, FrameInfo]:
    """Returns a native frame without its padding, by pixel, each pixel with all its samples and bits."""
    frame = exact_frame(frame, info)
    if info.samples_per_pixel == 1 or not (info.planar_configuration or info.subsampled):
        return frame, info
    return raw_array(frame, info).tobytes(), interleaved_info(info)


@lru_cache(maxsize=64)
def stored_low(info: FrameInfo) -> FrameInfo:
    """Returns the attributes of pixels that `to_array` has shifted down."""
    return replace(interleaved_info(info), high_bit=info.bits_stored - 1)
