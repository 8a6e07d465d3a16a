"""JPEG-LS of any depth by the C interface of the CharLS in imagecodecs' wheels.

The public functions of imagecodecs encode depths of 8 and 16 bits only. This writes any depth: the same bytes
as pyjpegls with its older CharLS, in four fifths of the time. `encode` returns None if the library is not
found, has another major version, or fails its self-check. Then the public functions of pyjpegls do the work.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache, partial

import numpy as np

from framecodecs.errors import EncodeError
from framecodecs.frameinfo import FrameInfo
from framecodecs.libraries import carried, load, passes
from framecodecs.samples import Samples

MAJOR = 2
MARKER_BYTES = 4096  # for markers, and for a few pixels that grow
# Noise that fills its containers grows by a sixth. A sample takes at most four times its bits (LIMIT in
# ISO/IEC 14495-1 A.2.1), and a stuffed bit behind each FF. The second room is for a frame that exceeds the
# first.
ROOM = (1.25, 5.0)
NO_ROOM = 3  # CHARLS_JPEGLS_ERRC_DESTINATION_BUFFER_TOO_SMALL
INTERLEAVED_BY_SAMPLE = 2
CHECKED = (
    FrameInfo(24, 33, 1, 16, 12, 11),
    FrameInfo(24, 33, 3, photometric_interpretation="RGB"),
)


class _EncoderParameters(ctypes.Structure):
    """JlsParameters (charls/public_types.h). Zeros in `rest` mean: colours unchanged, no BGR, the thresholds
    of the standard, no JFIF."""

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
def _parameters(info: FrameInfo, near: int) -> _EncoderParameters:
    mode = INTERLEAVED_BY_SAMPLE if info.samples_per_pixel > 1 else 0
    bits, samples = info.bits_stored, info.samples_per_pixel
    return _EncoderParameters(info.columns, info.rows, bits, 0, samples, near, mode)


@cache
def _library() -> ctypes.CDLL | None:
    """Returns the library that passes its self-check. JpegLsEncode exists in all of major version 2."""
    for found in carried("imagecodecs", "libcharls*.so*"):
        try:
            major = ctypes.c_int32()
            found.charls_get_version_number(ctypes.byref(major), None, None)
            found.charls_get_error_message.restype = ctypes.c_char_p
            address, size = ctypes.c_void_p, ctypes.c_size_t
            found.JpegLsEncode.argtypes = (address, size, address, address, size, address, address)
        except AttributeError:
            continue
        if major.value == MAJOR and passes(partial(_is_right, found)):
            return found
    return None


def _is_right(library: ctypes.CDLL) -> bool:
    """The self-check: returns whether imagecodecs decodes frames that the library encodes to equal pixels."""
    decode = load("imagecodecs").jpegls_decode
    for info in CHECKED:
        kind = "<u2" if info.bits_allocated > 8 else "u1"
        values = (np.indices(info.shape).sum(0) ** 2 % (1 << info.bits_stored)).astype(kind)
        if not np.array_equal(decode(_encoded(library, values, info, 0)), values):
            return False
    return True


def encode(values: Samples, info: FrameInfo, near: int) -> bytes | None:
    """`values` are unsigned numbers of Bits Stored bits, interleaved. Returns None without the library."""
    library = _library()
    return None if library is None else _encoded(library, values, info, near)


def _encoded(library: ctypes.CDLL, values: Samples, info: FrameInfo, near: int) -> bytes:
    values = np.ascontiguousarray(values)
    parameters, written, code = _parameters(info, near), ctypes.c_size_t(), 0
    for room in ROOM:
        out = np.empty(int(room * values.nbytes) + MARKER_BYTES, np.uint8)
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
