"""CharLS by its C interface, out of the shared library that imagecodecs' wheels carry.

imagecodecs itself encodes depths of 8 and 16 bits only. The library beneath it writes any depth, the very
bytes that pyjpegls' older one writes, in four fifths of the time. Where it is not found (imagecodecs built
otherwise, another major version) `encode` gives None, and pyjpegls does the work.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache

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


class _Parameters(ctypes.Structure):
    """JlsParameters (charls/public_types.h). The rest is zero: colours unchanged, no BGR, thresholds as the
    standard has them, no JFIF."""

    _fields_ = (
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("bitsPerSample", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("components", ctypes.c_int32),
        ("allowedLossyError", ctypes.c_int32),
        ("interleaveMode", ctypes.c_int32),
        ("rest", ctypes.c_int32 * 24),
    )


@lru_cache(maxsize=16)
def _parameters(info: FrameInfo, near: int) -> _Parameters:
    mode = INTERLEAVED_BY_SAMPLE if info.samples_per_pixel > 1 else 0
    bits, samples = info.bits_stored, info.samples_per_pixel
    return _Parameters(info.columns, info.rows, bits, 0, samples, near, mode)


@cache
def _library() -> ctypes.CDLL | None:
    """JpegLsEncode does in one call what an encoder does in eight; all of major version 2 have it."""
    for found in carried("imagecodecs", "libcharls*.so*"):
        try:
            major = ctypes.c_int32()
            found.charls_get_version_number(ctypes.byref(major), None, None)
            found.charls_get_error_message.restype = ctypes.c_char_p
            address, size = ctypes.c_void_p, ctypes.c_size_t
            found.JpegLsEncode.argtypes = (address, size, address, address, size, address, address)
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
    parameters, written, code = _parameters(info, near), ctypes.c_size_t(), 0
    for room in ROOM:
        out = np.empty(int(room * values.nbytes) + BESIDES, np.uint8)
        code = library.JpegLsEncode(
            out.ctypes.data,
            out.nbytes,
            ctypes.byref(written),
            values.ctypes.data,
            values.nbytes,
            ctypes.byref(parameters),
            None,
        )
        if not code:
            return out[: written.value].tobytes()
        if code != NO_ROOM:
            break
    raise EncodeError(f"CharLS: {library.charls_get_error_message(code).decode()}")
