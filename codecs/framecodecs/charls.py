"""CharLS by its C interface, out of the shared library that imagecodecs' wheels carry.

imagecodecs itself encodes depths of 8 and 16 bits only. The library beneath it writes any depth, the very
bytes that pyjpegls' older one writes, in four fifths of the time. Where it is not found (imagecodecs built
otherwise, another major version) `encode` gives None, and pyjpegls does the work.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from framecodecs.errors import EncodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import carried
from framecodecs.samples import Samples

MAJOR = 2
BESIDES = 4096  # bytes of markers, and of a few pixels that grow
# Noise that fills its containers grows by a sixth. No sample takes more than four times its bits (LIMIT in
# ISO/IEC 14495-1 A.2.1), a bit is stuffed behind each FF: what finds no room gets as much as there can be.
ROOM = (1.25, 5.0)
NO_ROOM = 3  # CHARLS_JPEGLS_ERRC_DESTINATION_BUFFER_TOO_SMALL
INTERLEAVED_BY_SAMPLE = 2


class _FrameInfo(ctypes.Structure):
    """charls_frame_info"""

    _fields_ = (
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("bits_per_sample", ctypes.c_int32),
        ("component_count", ctypes.c_int32),
    )


@cache
def _library() -> ctypes.CDLL | None:
    for found in carried("imagecodecs", "libcharls*.so*"):
        try:
            major = ctypes.c_int32()
            found.charls_get_version_number(ctypes.byref(major), None, None)
            found.charls_jpegls_encoder_create.restype = ctypes.c_void_p
        except AttributeError:
            continue
        if major.value == MAJOR:
            return found
    return None


def encode(values: Samples, info: FrameInfo, near: int) -> bytes | None:
    """`values` are unsigned numbers of Bits Stored bits, interleaved. None if the library is not there."""
    library = _library()
    if library is None:
        return None
    values = np.ascontiguousarray(values)
    for room in ROOM:
        out = np.empty(int(room * values.nbytes) + BESIDES, np.uint8)
        step, code, written = _encoded(library, values, info, near, out)
        if not code:
            return out[:written].tobytes()
        if code != NO_ROOM:
            break
    raise EncodeError(f"CharLS: {step} failed with {code}")


def _encoded(
    library: ctypes.CDLL, values: Samples, info: FrameInfo, near: int, out: Samples
) -> tuple[str, int, int]:
    """The last step that was taken and its error code, and how many bytes of `out` were written."""
    frame = _FrameInfo(info.columns, info.rows, info.bits_stored, info.samples_per_pixel)
    written = ctypes.c_size_t()
    mode = INTERLEAVED_BY_SAMPLE if info.samples_per_pixel > 1 else 0
    steps = (
        ("set_frame_info", ctypes.byref(frame)),
        ("set_near_lossless", ctypes.c_int32(near)),
        ("set_interleave_mode", ctypes.c_int32(mode)),
        ("set_destination_buffer", ctypes.c_void_p(out.ctypes.data), ctypes.c_size_t(out.nbytes)),
        (
            "encode_from_buffer",
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_size_t(values.nbytes),
            ctypes.c_uint32(0),
        ),
        ("get_bytes_written", ctypes.byref(written)),
    )
    encoder = ctypes.c_void_p(library.charls_jpegls_encoder_create())
    name, code = "", 0
    try:
        for name, *arguments in steps:
            code = getattr(library, f"charls_jpegls_encoder_{name}")(encoder, *arguments)
            if code:
                break
    finally:
        library.charls_jpegls_encoder_destroy(encoder)
    return name, code, written.value
