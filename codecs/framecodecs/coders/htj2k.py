"""High-Throughput JPEG 2000 (ISO/IEC 15444-15) by OpenJPH in imagecodecs. OpenJPEG can decode it, too.

The encoder writes progression RPCL, one tile-part for each resolution, and their lengths in TLM. The smallest
resolution is at most 64 wide and high (PS3.5 10.18), so a client draws a small picture from the first
kilobytes.

The wrapper of OpenJPH knows only depths of 8 and 16 bits. SIZ gets Bits Stored in this way:
- lossless: values are encoded around zero (`jpeg_2000.centred`);
- lossy: values are shifted up until they fill the container. Quantizer steps are relative to the depth in
  SIZ. So the new depth scales the picture back, and a decoder clips to the right range.
"""

from __future__ import annotations

import numpy as np

from framecodecs import samples
from framecodecs.coders import jpeg_2000
from framecodecs.errors import CodestreamError, DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.jpeg2000_header import Jpeg2000Header, read_jpeg2000_header
from framecodecs.libraries import guarded, load
from framecodecs.samples import Samples

BASE_RESOLUTION = 64
TILE_PARTS_BY_RESOLUTION = 1
ROOMY_BITS = 24  # of the mantissa of OpenJPH's numbers


def header_of(frame: bytes, info: FrameInfo) -> Jpeg2000Header:
    header = read_jpeg2000_header(frame)
    if header.precision > ROOMY_BITS and not header.reversible:
        raise CodestreamError(f"{header.precision} bits a sample, lossy ones have at most {ROOMY_BITS}")
    if not header.high_throughput:
        raise CodestreamError("the codestream has no CAP segment of High-Throughput JPEG 2000")
    return header


def decode(frame: bytes, info: FrameInfo, header: Jpeg2000Header) -> tuple[bytes, FrameInfo]:
    codestream = header.codestream(frame)
    if not header.reversible:
        return jpeg_2000.finished(_decoded_with_room(codestream, info, header), info, header)
    with guarded(DecodeError, "HTJ2K"):
        decoded = load("imagecodecs").htj2k_decode(codestream, planar=False).reshape(info.shape)
    return jpeg_2000.finished(decoded, info, header)


def _decoded_with_room(codestream: bytes, info: FrameInfo, header: Jpeg2000Header) -> Samples:
    """Decodes a lossy codestream. Its values may exceed the range, and the wrapper would wrap white around to
    black. So this reads it as if it had 24 bits, which leaves room, and scales it back."""
    roomy = bytearray(codestream)
    for component in range(header.components):
        roomy[jpeg_2000.DEPTH_AT + 3 * component] = header.signed << 7 | (ROOMY_BITS - 1)
    with guarded(DecodeError, "HTJ2K"):
        wide = load("imagecodecs").htj2k_decode(bytes(roomy), planar=False).reshape(info.shape).view("<i4")
    spare = ROOMY_BITS - header.precision
    low = -(1 << (header.precision - 1)) if header.signed else 0
    scaled: Samples = (wide + (1 << spare >> 1)) >> spare
    return scaled.clip(low, low + (1 << header.precision) - 1)


def levels_of(info: FrameInfo) -> int:
    """Returns the decompositions until the longer side is at most 64. With 0 the wrapper would take its own
    default."""
    levels = 1
    while -(-max(info.rows, info.columns) >> levels) > BASE_RESOLUTION:
        levels += 1
    return levels


def quantizer_step(quality: int) -> float:
    """Returns a part of the full range: 1/256 at quality 90, and twice as much for every 20 less."""
    return float(2.0 ** ((90 - quality) / 20) / 256)


def _filling(values: Samples, info: FrameInfo) -> Samples:
    """Shifts values up until they fill a container of 8 or 16 bits."""
    width = 1 if info.bits_stored <= 8 else 2
    return values.astype(f"<{values.dtype.kind}{width}", copy=False) << (8 * width - info.bits_stored)


def encode(
    frame: bytes, info: FrameInfo, options: EncodeOptions, reversible: bool = True
) -> tuple[bytes, FrameInfo]:
    values = samples.to_array(frame, info)
    prepared = jpeg_2000.centred(values, info) if reversible else _filling(values, info)
    out = samples.stored_low(info)
    transform = out.photometric_interpretation == "RGB"
    with guarded(EncodeError, "HTJ2K"):
        encoded = load("imagecodecs").htj2k_encode(
            np.ascontiguousarray(prepared),
            None if reversible else quantizer_step(options.quality),
            rgb=transform,
            planar=False,
            resolutions=levels_of(info),
            reversible=reversible,
            tlm=True,
            tilepart=TILE_PARTS_BY_RESOLUTION,
        )
    named = jpeg_2000.with_depth(encoded, info)
    return named, out.with_colour(jpeg_2000.TRANSFORMED[reversible]) if transform else out
