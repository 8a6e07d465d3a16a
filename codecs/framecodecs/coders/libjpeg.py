"""JPEG of 12 bits, one sample a pixel, by the C interface of the libjpeg-turbo in imagecodecs' wheels.

The public functions of imagecodecs use the integer transform, which is not vectorised for 12 bits. They read
the whole frame once to find Huffman tables, and once to write it. This uses the floating-point transform,
which is faster and nearer to the exact one, and finds the tables in every eighth row of blocks. It takes a
third of the time and some tenths of a percent more bytes. A frame that is small, becomes small, or differs
much from its sample is read whole to find the tables.

`encode` returns None if the library is not found, has another interface or fails its self-check, and for an
unsuitable frame. Then the public functions of imagecodecs do the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache, partial
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from framecodecs.libraries import carried, load, passes
from framecodecs.samples import Samples

VERSION = 80  # JPEG_LIB_VERSION: the interface of libjpeg 8
PRECISION = 12
GRAYSCALE = 1  # JCS_GRAYSCALE
FLOATING_POINT = 2  # JDCT_FLOAT
BASELINE_DIVISORS = 1  # no more than 8 bits each, as imagecodecs writes them
LONGEST_SIDE = 65_500  # JPEG_MAX_DIMENSION
LARGEST = 2**26  # pixels; libjpeg ends the process if memory for a larger frame is short
BLOCK = 8
SAMPLE = 8  # one row of blocks in so many
SMALL = 1024  # blocks; a sample of fewer says little
LITTLE = 20_000  # bytes; in fewer, codes for all symbols are too large a part.
UNLIKE = 1.5  # times the bytes that the sample promised.
# A block has 64 codes of 16 bits, each with up to 15 bits and a stuffed byte behind it. No block is longer.
ROOM = 512
MARKER_BYTES = 4096
UNKNOWN_SIZE = 4096  # bytes for a structure that may be larger than the one described here

LONGEST_CODE = 16
ALL = 1 << LONGEST_CODE  # codes of 16 bits; a code of n bits takes the room of 2^(16 - n) of them
DC_SYMBOLS = range(16)  # bit lengths of differences, of up to 12 bits a sample (F.1.2.1, table F.6)
END_OF_BLOCK, SIXTEEN_ZEROS = 0x00, 0xF0
AC_SYMBOLS = (
    END_OF_BLOCK,
    SIXTEEN_ZEROS,
    *(zeros << 4 | length for zeros in range(16) for length in range(1, 15)),
)
"""The symbols after the first coefficient of a block: a count of zeros, and the length of the next value."""

Rows = NDArray[np.uintp]


class HuffmanTable(NamedTuple):
    """A DHT segment (ISO/IEC 10918-1 annex C): the number of codes of each length from 1 to 16, and the
    symbols in the order of their codes."""

    counts: tuple[int, ...]
    symbols: bytes


def completed(table: HuffmanTable, symbols: Iterable[int]) -> HuffmanTable:
    """Returns the table with a code for each of `symbols`. Missing ones get the longest codes, of one length.
    If there is no room, the rarest others become a bit longer. The code of ones alone stays unused."""
    missing = bytes(sorted(set(symbols).difference(table.symbols)))
    counts = [0, *table.counts]
    room = ALL - sum(count << (LONGEST_CODE - length) for length, count in enumerate(counts) if length) - 1
    while room < len(missing):
        room += _lengthened(counts, len(missing) - room)
    length = LONGEST_CODE
    while missing and len(missing) << (LONGEST_CODE + 1 - length) <= room and length > 1:
        length -= 1
    place = sum(counts[: length + 1])
    counts[length] += len(missing)
    return HuffmanTable(tuple(counts[1:]), table.symbols[:place] + missing + table.symbols[place:])


def _lengthened(counts: list[int], wanted: int) -> int:
    """Makes codes a bit longer, each at most once, until `wanted` codes fit. Returns the room that it gained.
    The last codes of a length become the first ones of the next length, so the order of symbols stays."""
    room = 0
    for length in range(LONGEST_CODE - 1, 0, -1):
        gain = 1 << (LONGEST_CODE - 1 - length)
        moved = min(counts[length], -(-max(wanted - room, 0) // gain))
        counts[length] -= moved
        counts[length + 1] += moved
        room += moved * gain
    return room


class _NativeHuffmanTable(ctypes.Structure):
    """JHUFF_TBL"""

    _fields_ = (
        ("bits", ctypes.c_uint8 * 17),
        ("huffval", ctypes.c_uint8 * 256),
        ("sent_table", ctypes.c_int),
    )


class _Compressor(ctypes.Structure):
    """jpeg_compress_struct of libjpeg 8. Fields that are not used here stand together under one name."""

    _fields_ = (
        ("err", ctypes.c_void_p),
        ("mem_to_client_data", ctypes.c_void_p * 3),
        ("is_decompressor_and_state", ctypes.c_int * 2),
        ("dest", ctypes.c_void_p),
        ("image_width", ctypes.c_uint),
        ("image_height", ctypes.c_uint),
        ("input_components", ctypes.c_int),
        ("in_color_space", ctypes.c_int),
        ("input_gamma", ctypes.c_double),
        ("scale_and_size", ctypes.c_uint * 4),
        ("data_precision", ctypes.c_int),
        ("components_and_color_space", ctypes.c_int * 2),
        ("comp_info_and_quant_tables", ctypes.c_void_p * 5),
        ("q_scale_factor", ctypes.c_int * 4),
        ("dc_huff_tbl_ptrs", ctypes.POINTER(_NativeHuffmanTable) * 4),
        ("ac_huff_tbl_ptrs", ctypes.POINTER(_NativeHuffmanTable) * 4),
        ("arith_dc_L_to_ac_K", ctypes.c_uint8 * 48),
        ("num_scans", ctypes.c_int),
        ("scan_info", ctypes.c_void_p),
        ("raw_data_in_and_arith_code", ctypes.c_int * 2),
        ("optimize_coding", ctypes.c_int),
        ("sampling_and_smoothing", ctypes.c_int * 3),
        ("dct_method", ctypes.c_int),
        ("restart_interval_to_jfif", ctypes.c_int * 3),
        ("jfif_version_and_unit", ctypes.c_uint8 * 3),
        ("density", ctypes.c_uint16 * 2),
        ("adobe_to_scan_components", ctypes.c_int * 9),
        ("cur_comp_info", ctypes.c_void_p * 4),
        ("scan_state_to_block_size", ctypes.c_int * 18),
        ("natural_order", ctypes.c_void_p),
        ("lim_Se", ctypes.c_int),
        ("modules_and_script_space", ctypes.c_void_p * 10),
        ("script_space_size", ctypes.c_int),
    )


_ErrorExit = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # the first field of jpeg_error_mgr


@cache
def _library() -> ctypes.CDLL | None:
    """Returns the library that passes its self-check."""
    for found in carried("imagecodecs", "libjpeg*.so*"):
        try:
            found.jpeg_std_error.restype = ctypes.c_void_p
            found.jpeg12_write_scanlines.restype = ctypes.c_uint
            if _is_as_described(found) and passes(partial(_is_right, found)):
                return found
        except AttributeError:  # of libjpegxr, and of a libjpeg that knows 8 bits only
            continue
    return None


def _is_as_described(library: ctypes.CDLL) -> bool:
    """Returns whether its interface and the size of its structure are those that are described here.
    jpeg_CreateCompress calls error_exit if they differ, and goes on safely if that returns."""
    errors: list[int] = []
    error_exit = _ErrorExit(errors.append)
    error, compressor = (ctypes.create_string_buffer(UNKNOWN_SIZE) for _ in range(2))
    library.jpeg_std_error(error)
    ctypes.c_void_p.from_buffer(error).value = ctypes.cast(error_exit, ctypes.c_void_p).value
    ctypes.c_void_p.from_buffer(compressor).value = ctypes.addressof(error)
    size = ctypes.c_size_t(ctypes.sizeof(_Compressor))
    library.jpeg_CreateCompress(compressor, ctypes.c_int(VERSION), size)
    library.jpeg_destroy_compress(compressor)
    return not errors


def _is_right(library: ctypes.CDLL) -> bool:
    """The self-check: returns whether imagecodecs decodes a picture that the library encodes, with and
    without a sample, and loses no more than by its own encoder."""
    rows, columns = np.indices((256, 264))
    picture = (2048 + 1500 * np.sin(rows / 40) * np.cos(columns / 30) + rows * columns % 61).astype("<u2")
    codec = load("imagecodecs")

    def loss(codestream: bytes, values: Samples) -> float:
        return float(np.square(codec.jpeg8_decode(codestream).astype(int) - values).mean())

    for values in (picture, picture[:64]):
        reference = codec.jpeg8_encode(values, 90, bitspersample=12)
        if loss(_encoded(library, values, 90), values) > 1.05 * loss(reference, values) + 1:
            return False
    return True


@cache
def _abort() -> int | None:
    """Returns the address of abort in the C library."""
    return ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value


def encode(values: Samples, quality: int) -> bytes | None:
    """`values` are rows of numbers below 4,096. Returns None without the library, and for a frame that
    libjpeg refuses, because its error would end the process."""
    suitable = (
        values.ndim == 2
        and values.dtype == np.uint16
        and all(0 < side <= LONGEST_SIDE for side in values.shape)
        and values.size <= LARGEST
    )
    library = _library() if suitable else None
    return None if library is None else _encoded(library, values, quality)


def _encoded(library: ctypes.CDLL, values: Samples, quality: int) -> bytes:
    values = np.ascontiguousarray(values)
    rows = values.ctypes.data + np.arange(len(values), dtype=np.uintp) * np.uintp(values.strides[0])
    sample = _sample(rows, values.shape[1])
    with _JpegCompressor(library, values.shape, quality) as compressor:
        if sample.size:
            promised = compressor.write(sample, optimize=True) * rows.size / sample.size
            compressor.complete_tables()
            if promised > LITTLE and compressor.write(rows, optimize=False) <= UNLIKE * promised:
                return compressor.written()
        compressor.write(rows, optimize=True)
        return compressor.written()


def _sample(rows: Rows, columns: int) -> Rows:
    """Returns some rows of blocks; none if the frame is so small that all of them should be read."""
    whole = rows[: rows.size // BLOCK * BLOCK].reshape(-1, BLOCK)
    if len(whole) < SAMPLE or len(whole) * -(-columns // BLOCK) < SMALL:
        return rows[:0]
    return whole[SAMPLE // 2 :: SAMPLE].reshape(-1)


class _JpegCompressor:
    """A compressor of libjpeg with its destination.

    An error ends the process at once, because libjpeg does not allow error_exit to return. A pixel process
    may end at any time.
    """

    def __init__(self, library: ctypes.CDLL, shape: Sequence[int], quality: int) -> None:
        self._library = library
        self._error = ctypes.create_string_buffer(UNKNOWN_SIZE)
        library.jpeg_std_error(self._error)
        ctypes.c_void_p.from_buffer(self._error).value = _abort()
        blocks = prod(-(-side // BLOCK) for side in shape)
        self._room = np.empty(ROOM * blocks + MARKER_BYTES, np.uint8)  # unwritten pages cost nothing
        np.empty(BLOCK * BLOCK * blocks + MARKER_BYTES, np.uint16)  # MemoryError sooner than error_exit
        self._length = ctypes.c_ulong()
        self._fields = _Compressor(err=ctypes.addressof(self._error))
        self._compressor = ctypes.byref(self._fields)
        library.jpeg_CreateCompress(self._compressor, VERSION, ctypes.c_size_t(ctypes.sizeof(_Compressor)))
        self._fields.image_width = shape[1]
        self._fields.input_components = 1
        self._fields.in_color_space = GRAYSCALE
        self._fields.data_precision = PRECISION
        library.jpeg_set_defaults(self._compressor)
        library.jpeg_set_quality(self._compressor, quality, BASELINE_DIVISORS)
        self._fields.dct_method = FLOATING_POINT

    def __enter__(self) -> _JpegCompressor:
        return self

    def __exit__(self, *unused: object) -> None:
        self._library.jpeg_destroy_compress(self._compressor)

    def write(self, rows: Rows, *, optimize: bool) -> int:
        """Writes a JPEG of the rows (addresses), with the best tables or the present ones. Returns its
        length in bytes."""
        library, compressor = self._library, self._compressor
        start = ctypes.c_void_p(self._room.ctypes.data)
        self._length.value = self._room.size
        self._fields.image_height = rows.size
        self._fields.optimize_coding = optimize
        library.jpeg_mem_dest(compressor, ctypes.byref(start), ctypes.byref(self._length))
        library.jpeg_start_compress(compressor, 1)
        library.jpeg12_write_scanlines(compressor, ctypes.c_void_p(rows.ctypes.data), rows.size)
        library.jpeg_finish_compress(compressor)
        return self._length.value

    def written(self) -> bytes:
        return self._room[: self._length.value].tobytes()

    def complete_tables(self) -> None:
        """Gives every symbol a code. For a symbol without one, libjpeg's vector code writes no bits and
        reports no error."""
        for found, symbols in (
            (self._fields.dc_huff_tbl_ptrs[0].contents, DC_SYMBOLS),
            (self._fields.ac_huff_tbl_ptrs[0].contents, AC_SYMBOLS),
        ):
            counts = bytes(found.bits)[1:]
            table = completed(HuffmanTable(tuple(counts), bytes(found.huffval[: sum(counts)])), symbols)
            found.bits[1:] = table.counts
            found.huffval[: len(table.symbols)] = table.symbols
