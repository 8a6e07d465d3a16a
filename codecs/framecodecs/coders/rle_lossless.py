"""RLE Lossless (PS3.5 annex G) by pylibjpeg-rle. It keeps all bits, those above the high bit too."""

from __future__ import annotations

import numpy as np

from framecodecs.errors import DecodeError, EncodeError
from framecodecs.frameinfo import EncodeOptions, FrameInfo
from framecodecs.headers.codestream import CodestreamHeader
from framecodecs.libraries import guarded, load
from framecodecs.samples import interleaved_info, native


def decode(frame: bytes, info: FrameInfo, header: CodestreamHeader) -> tuple[bytes, FrameInfo]:
    """Returns a frame by pixel; the library decodes to planes."""
    with guarded(DecodeError, "RLE"):
        planes = load("pylibjpeg-rle").decode_frame(frame, info.rows * info.columns, info.bits_allocated, "<")
    out = interleaved_info(info)
    if len(planes) != out.frame_length:
        raise DecodeError(f"RLE: decoded to {len(planes)} bytes instead of {out.frame_length}")
    if info.samples_per_pixel == 1:
        return bytes(planes), out
    by_plane = np.frombuffer(planes, info.container).reshape(info.samples_per_pixel, -1)
    return by_plane.T.tobytes(), out


def encode(frame: bytes, info: FrameInfo, options: EncodeOptions) -> tuple[bytes, FrameInfo]:
    frame, info = native(frame, info)
    with guarded(EncodeError, "RLE"):
        encoded = load("pylibjpeg-rle").encode_frame(
            frame, info.rows, info.columns, info.samples_per_pixel, info.bits_allocated, "<"
        )
    return bytes(encoded), info
